//! The drop-ins of each guest's units: what they need of each other, and which files they see (systemd.generator(7)).
//!
//! systemd calls this at the boot and at each `systemctl daemon-reload`. It is a function of the definitions alone: it
//! looks at no image.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{create_dir_all, write};
use std::path::Path;

use anyhow::Context;

use super::unit_name::{backend, monitor, target};
use crate::guest::definition::{Disk, Serial};
use crate::guest::{Action, Definition, net_name};
use crate::store::Store;

/// The unit that starts guests with the host.
const AUTOSTART: &str = "bulkhead-guests.service";
const HELPER: &str = "bulkhead-net-helper.socket";

/// Writes the drop-ins of all guests into `folder`. A damaged definition makes a warning, and no drop-in.
///
/// # Errors
/// When they cannot be written.
pub(super) fn generate(store: &Store, folder: &Path) -> anyhow::Result<()> {
    let mut autostarted = Vec::new();
    for entry in store.all()? {
        match entry.definition {
            Ok(guest) => {
                for (unit, text) in dropins(&guest) {
                    add(folder, &unit, &text)?;
                }
                autostarted.extend(guest.autostart.then(|| target(&guest.name)));
            }
            Err(wrong) => bulkhead_process::warn(&format!("{wrong:#}")),
        }
    }
    if !autostarted.is_empty() {
        let targets = autostarted.join(" ");
        add(folder, AUTOSTART, &format!("[Unit]\nWants={targets}\n"))?;
    }
    Ok(())
}

fn add(folder: &Path, unit: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(format!("{unit}.d"));
    let file = path.join("50-definition.conf");
    let written = create_dir_all(&path).and_then(|()| write(&file, text));
    written.with_context(|| format!("cannot write {}", file.display()))
}

/// The drop-ins of a guest, by unit.
fn dropins(guest: &Definition) -> BTreeMap<String, String> {
    let mut units = BTreeMap::new();
    let mut backends = Vec::new();
    for (device, disk) in guest.named_disks() {
        let unit = backend("block", &guest.name, &device);
        let service = log_fields(&guest.name, &device) + &disk_files(disk);
        add_backend(&mut units, guest, &unit, &service);
        backends.push(unit);
    }
    for index in 0..guest.nets.len() {
        let device = net_name(index);
        let unit = backend("net", &guest.name, &device);
        add_backend(&mut units, guest, &unit, &log_fields(&guest.name, &device));
        backends.push(unit);
    }
    units.insert(monitor(&guest.name), monitor_dropin(guest, &backends));
    units
}

/// A backend ends with its guest.
fn add_backend(
    units: &mut BTreeMap<String, String>,
    guest: &Definition,
    unit: &str,
    service: &str,
) {
    let with_guest = format!("[Unit]\nPartOf={}\n", target(&guest.name));
    units.insert(format!("{unit}.socket"), with_guest.clone());
    let service = format!("{with_guest}[Service]\n{service}");
    units.insert(format!("{unit}.service"), service);
}

fn log_fields(guest: &str, device: &str) -> String {
    format!("LogExtraFields=GUEST={guest} DEVICE={device}\n")
}

/// The folder of the image, in which its journal is too, and those of its backing files.
fn disk_files(disk: &Disk) -> String {
    let path = &disk.path;
    let mut lines = String::new();
    if path.starts_with("/dev") {
        // Its name in /dev may be a link.
        lines += "PrivateDevices=no\nDeviceAllow=block-* rw\n";
    } else {
        let folder = path.parent().unwrap_or(path);
        lines += &bind(folder, !disk.readonly);
    }
    for folder in &disk.allow_path {
        lines += &bind(folder, false);
    }
    lines
}

/// The monitor needs its backends' sockets, and comes after the backends, so that it ends before them. The sockets
/// start them.
fn monitor_dropin(guest: &Definition, backends: &[String]) -> String {
    let mut text = String::from("[Unit]\n");
    for unit in backends {
        // Writing to a String does not fail.
        let _ = writeln!(text, "Requires={unit}.socket");
        let _ = writeln!(text, "After={unit}.socket {unit}.service");
    }
    if !guest.nets.is_empty() {
        let _ = writeln!(text, "Wants={HELPER}\nAfter={HELPER}");
    }
    text += "[Service]\n";
    for (status, action) in [
        (0, guest.on_poweroff),
        (3, guest.on_reboot),
        (4, guest.on_crash),
    ] {
        let option = match action {
            Action::Restart => "RestartForceExitStatus",
            // The monitor has ended, so there is nothing to preserve but its backends, which do not know the guest.
            Action::Destroy | Action::Preserve => "RestartPreventExitStatus",
        };
        let _ = writeln!(text, "{option}={status}");
    }
    let files = [Some(&guest.kernel), guest.initramfs.as_ref()];
    for file in files.into_iter().flatten() {
        text += &bind(file, false);
    }
    if let Serial::File(path) = &guest.serial {
        text += &bind(path.parent().unwrap_or(path), true);
    }
    text
}

/// Has a service see a file or folder. What is missing is left out, for the program to say so.
fn bind(path: &Path, writable: bool) -> String {
    let option = match writable {
        true => "BindPaths",
        false => "BindReadOnlyPaths",
    };
    match quote(path) {
        Some(path) => format!("{option}=-{path}\n"),
        None => String::new(),
    }
}

/// A path as a value of BindPaths=, which splits at spaces and colons and expands `%`. `None`: no unit can express it.
fn quote(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let mut quoted = String::new();
    for character in text.chars() {
        match character {
            '%' => quoted.push('%'),
            ' ' | ':' | '\\' | '"' | '\'' => quoted.push('\\'),
            character if character.is_control() => return None,
            _ => {}
        }
        quoted.push(character);
    }
    Some(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::definition::Text;

    fn guest(lines: &str) -> Definition {
        let text = format!("name = \"a-b\"\nkernel = \"/boot/k\"\n{lines}");
        Text::parse(text.as_bytes()).unwrap().1
    }

    #[test]
    fn a_guest_needs_its_sockets_and_each_backend_ends_with_it() {
        let units = dropins(&guest(
            "[[disks]]\npath = \"/images/my disk.qcow2\"\nformat = \"qcow2\"\nallow_path = [\"/base\"]\n\
             [[disks]]\npath = \"/iso/cd.raw\"\nformat = \"raw\"\nreadonly = true\n\
             [[nets]]\nnetwork = \"default\"\n",
        ));
        let names: Vec<_> = units.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "bulkhead-block@a\\x2db-vda.service",
                "bulkhead-block@a\\x2db-vda.socket",
                "bulkhead-block@a\\x2db-vdb.service",
                "bulkhead-block@a\\x2db-vdb.socket",
                "bulkhead-net@a\\x2db-net0.service",
                "bulkhead-net@a\\x2db-net0.socket",
                "bulkhead-vmm@a\\x2db.service",
            ]
        );
        let part = "[Unit]\nPartOf=bulkhead-guest@a\\x2db.target\n";
        assert_eq!(units[names[1]], part);
        let disk = "[Service]\nLogExtraFields=GUEST=a-b DEVICE=vda\nBindPaths=-/images\nBindReadOnlyPaths=-/base\n";
        assert_eq!(units[names[0]], format!("{part}{disk}"));
        assert!(units[names[2]].ends_with("BindReadOnlyPaths=-/iso\n"));
        let monitor = &units[names[6]];
        for unit in [names[1], names[3], names[5]] {
            assert!(monitor.contains(&format!("Requires={unit}\n")), "{monitor}");
        }
        assert!(!monitor.contains("Requires=bulkhead-block@a\\x2db-vda.service"));
        assert!(monitor.contains("Wants=bulkhead-net-helper.socket\n"));
        assert!(monitor.ends_with("BindReadOnlyPaths=-/boot/k\n"));
    }

    #[test]
    fn what_follows_an_end_is_the_definitions_decision() {
        let usual = &dropins(&guest(""))[&monitor("a-b")];
        assert!(usual.contains(
            "RestartPreventExitStatus=0\nRestartForceExitStatus=3\nRestartPreventExitStatus=4\n"
        ));
        let other =
            guest("on_poweroff = \"restart\"\non_reboot = \"destroy\"\non_crash = \"restart\"\n");
        assert!(dropins(&other)[&monitor("a-b")].contains(
            "RestartForceExitStatus=0\nRestartPreventExitStatus=3\nRestartForceExitStatus=4\n"
        ));
    }

    #[test]
    fn paths_are_one_word_of_a_unit_or_left_out() {
        let quoted = |path: &str| quote(Path::new(path));
        assert_eq!(quoted("/a b:c%d").unwrap(), "/a\\ b\\:c%%d");
        assert_eq!(quoted("/a\nBindPaths=/etc"), None);
    }

    #[test]
    fn a_disk_in_dev_is_a_device() {
        let units = dropins(&guest(
            "[[disks]]\npath = \"/dev/vg/web\"\nformat = \"raw\"\n",
        ));
        let disk = &units["bulkhead-block@a\\x2db-vda.service"];
        assert!(disk.ends_with("PrivateDevices=no\nDeviceAllow=block-* rw\n"));
    }
}
