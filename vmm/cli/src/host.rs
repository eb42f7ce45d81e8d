//! Facts about this host: files of the kernel's, programs.

use std::io;
use std::path::{Path, PathBuf};

/// The text of a file of the kernel's, without the line feed at its end.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let text = std::fs::read(path)?;
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// A number in a file of the kernel's; `None` where the file cannot be read.
pub(crate) fn number(path: impl AsRef<Path>) -> Option<u64> {
    read(path).ok()?.parse().ok()
}

/// The first value of a field in /proc/cpuinfo.
pub(crate) fn cpu_field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut found = fields.filter(|(field, _)| field.trim() == name);
    found.next().map(|(_, value)| value.trim())
}

/// Where a program of this name is.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An ordinary user's path often lacks the folders of administration.
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "processor\t: 0\nvmx flags\t: ept\nflags\t\t: fpu vmx\n\nflags\t\t: fpu\n";
        assert_eq!(cpu_field(text, "flags"), Some("fpu vmx"));
        assert_eq!(cpu_field(text, "vmx flags"), Some("ept"));
        assert_eq!(cpu_field(text, "model name"), None);
    }
}
