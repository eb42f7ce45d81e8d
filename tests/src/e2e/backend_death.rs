//! A backend may die at any moment: the guest sees a pause, not an error.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{Setting, Stage, check_image, process_of, signal};
use crate::guest_run::{GuestRun, Word};
use crate::hash;
use crate::web::WebServer;
use crate::workplace::Workplace;

/// Writes file after file, each flushed, prints a line for each, and reads them all back from the disk at the end.
/// Set by the host: FILES, KIB.
const WRITER: &str = r#"
mke2fs /dev/vda >/dev/null 2>&1 || fail "mke2fs"
mount -t ext2 /dev/vda /mnt || fail "mount"
for number in $(seq 1 $FILES); do
    dd if=/dev/urandom of=/mnt/$number bs=1k count=$KIB conv=fsync 2>/dev/null || fail "write $number"
    sha256sum /mnt/$number >>/sums
    say written $number
done
umount /mnt || fail "umount"
echo 3 >/proc/sys/vm/drop_caches
mount -t ext2 /dev/vda /mnt || fail "mount again"
sha256sum -c /sums >/dev/null || fail "what was written reads back differently"
umount /mnt
dmesg | grep -i 'i/o error' && fail "the kernel has seen an I/O error"
say intact
"#;

/// Fetches the page again and again. Set by the host: URL, PAGE_HASH.
const READER: &str = r#"
ip link set eth0 up
udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp >/dev/null 2>&1 || fail "no address by DHCP"
for number in $(seq 1 6); do
    wget -q -O /page "$URL" || fail "wget $number"
    [ "$(sha256sum /page | cut -d ' ' -f 1)" = "$PAGE_HASH" ] || fail "page $number has another hash"
    say fetched $number
done
say intact
"#;

/// How often `bulkhead-block` is killed in the tests.
pub const KILLS: u32 = 2;
/// How long each file is at most.
pub const FILE_KIB: u32 = 2048;
/// Files between two kills, the space for all of them, and that of the smallest disk.
const FILES: u32 = 8;
const SPACE_KIB: u32 = 96 << 10;
const DISK_KIB: u32 = 64 << 10;

/// `bulkhead-block` is killed while the guest writes, again and again.
pub(super) fn block(setting: &Setting) -> Result<()> {
    let stage = Stage::new(&setting.workplace)?;
    let files = FILES * (setting.kills + 1);
    let kib = (SPACE_KIB / files).min(setting.file_kib);
    let settings = [("FILES", files.to_string()), ("KIB", kib.to_string())];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut guest = stage.guest(WRITER, &settings)?;
    guest.cpus = setting.cpus;
    let space = (files * kib).max(DISK_KIB / 4) * 4;
    let image = stage.disk(&format!("{space}K"))?;
    guest.disk = Some(image.display().to_string());
    let mut run = stage.run(&guest)?;

    for kill in 0..setting.kills {
        run.wait_for(&format!("written {}", FILES * kill + FILES / 2))?;
        self::kill(&run, "bulkhead-block")?;
    }
    finish(run, "vda", setting.kills as usize)?;

    check_image(&image)?;
    stage.nothing_left()
}

/// `bulkhead-net` is killed while the guest fetches pages.
pub(super) fn net(workplace: &Workplace) -> Result<()> {
    let stage = Stage::new(workplace)?;
    let page = hash::pseudo_random(100_000, 3);
    let page_hash = hash::of(&page);
    let web = WebServer::start(page)?;
    let mut guest = stage.guest(READER, &[("URL", &web.url()), ("PAGE_HASH", &page_hash)])?;
    guest.net = true;
    let mut run = stage.run(&guest)?;

    run.wait_for("fetched 2")?;
    kill(&run, "bulkhead-net")?;
    finish(run, "net0", 1)?;

    drop(web);
    stage.nothing_left()
}

fn kill(run: &GuestRun, program: &str) -> Result<()> {
    let pid = process_of(program).with_context(|| run.story())?;
    signal(pid, Signal::KILL)
}

/// The guest has got to its end, and `bulkhead` says how often it has started `process` again.
fn finish(mut run: GuestRun, process: &str, deaths: usize) -> Result<()> {
    let mut intact = false;
    while let Some(word) = run.next_word()? {
        intact |= word == Word::Said("intact".to_owned());
    }
    ensure!(intact, "the guest did not get to its end; {}", run.story());
    let end = run.wait()?;
    let said = end.errors.join("\n  ");
    ensure!(
        end.status.success(),
        "bulkhead run: {}; it said:\n  {said}",
        end.status
    );
    let reported = end
        .errors
        .iter()
        .filter(|line| line.contains(&format!("{process} died")))
        .count();
    ensure!(
        reported == deaths,
        "{process} was killed {deaths} times, and bulkhead said:\n  {said}"
    );
    Ok(())
}
