//! Debian's cloud kernel, unpacked from its package: the images, and the modules with what they depend on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::initramfs::Initramfs;

/// An unpacked `linux-image-*` package whose `modules.dep` exists (`cargo xtask setup` makes it so).
pub struct Kernel {
    root: PathBuf,
    release: String,
    /// Module name → path and names of what must be loaded before it, in load order.
    modules: BTreeMap<String, Module>,
}

struct Module {
    path: String,
    dependencies: Vec<String>,
}

impl Kernel {
    /// Opens the package unpacked at `root`.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = root.join("lib/modules");
        let release = std::fs::read_dir(&folder)
            .ok()
            .and_then(|mut entries| entries.next())
            .with_context(|| {
                format!(
                    "no kernel package at {}: run `cargo xtask setup`",
                    root.display()
                )
            })??
            .file_name()
            .into_string()
            .ok()
            .context("kernel release is not UTF-8")?;
        let index = folder.join(&release).join("modules.dep");
        let index = std::fs::read_to_string(&index).with_context(|| index.display().to_string())?;
        let modules = index.lines().filter_map(parse_dependency_line).collect();
        Ok(Self {
            root: root.to_owned(),
            release,
            modules,
        })
    }

    /// `uname -r` of this kernel.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The folder of the unpacked package.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn modules_folder(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The names of every module under the folders given, such as `kernel/net/bridge`.
    pub fn modules_in(&self, folders: &[&str]) -> Vec<&str> {
        let within = |path: &str| {
            folders
                .iter()
                .any(|folder| Path::new(path).starts_with(folder))
        };
        self.modules
            .iter()
            .filter(|(_, module)| within(&module.path))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// What `modprobe` and the kernel look modules up in.
    pub fn indexes(&self) -> Result<Vec<PathBuf>> {
        let base = self.modules_folder();
        let entries = std::fs::read_dir(&base).with_context(|| base.display().to_string())?;
        let files = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        Ok(files.into_iter().filter(|path| path.is_file()).collect())
    }

    /// The package's own image, a bzImage.
    pub fn bzimage(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The ELF image with its PVH note, unpacked from the bzImage by `cargo xtask setup`.
    pub fn vmlinux(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("vmlinux-{}", self.release))
    }

    /// The names given and all they depend on, each once, in an order in which `insmod` accepts them.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order: Vec<&str> = Vec::new();
        for name in names {
            let Some(module) = self.modules.get(*name) else {
                bail!("kernel {} has no module {name}", self.release);
            };
            for part in module
                .dependencies
                .iter()
                .map(String::as_str)
                .chain([*name])
            {
                if !order.contains(&part) {
                    order.push(part);
                }
            }
        }
        let base = self.modules_folder();
        Ok(order
            .iter()
            .filter_map(|name| self.modules.get(*name))
            .map(|module| base.join(&module.path))
            .collect())
    }

    /// Puts modules into an initramfs, with `/modules` listing them in load order, one path a line.
    pub fn add_modules(&self, root: &mut Initramfs, names: &[&str]) -> Result<()> {
        let mut list = String::new();
        for source in self.load_order(names)? {
            let file = source
                .file_name()
                .and_then(|name| name.to_str())
                .context("module name is not UTF-8")?;
            let path = format!("/lib/modules/{file}");
            root.copy(&path, &source)?;
            list += &format!("{path}\n");
        }
        root.file("/modules", 0o644, list);
        Ok(())
    }
}

/// `kernel/a/b-c.ko: kernel/d.ko kernel/e.ko` says: e, then d, then `b_c`.
fn parse_dependency_line(line: &str) -> Option<(String, Module)> {
    let (path, dependencies) = line.split_once(':')?;
    let dependencies = dependencies
        .split_whitespace()
        .rev()
        .filter_map(module_name)
        .collect();
    Some((
        module_name(path)?,
        Module {
            path: path.to_owned(),
            dependencies,
        },
    ))
}

/// The name `modprobe` knows a file by.
fn module_name(path: &str) -> Option<String> {
    let (stem, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("lib/modules/6.1.0-test");
        std::fs::create_dir_all(&base).unwrap();
        let index =
            "k/kvm-amd.ko: k/kvm.ko k/irqbypass.ko\nk/kvm.ko: k/irqbypass.ko\nk/irqbypass.ko:\n";
        std::fs::write(base.join("modules.dep"), index).unwrap();

        let kernel = Kernel::open(folder.path()).unwrap();
        let order = kernel.load_order(&["kvm", "kvm_amd"]).unwrap();

        let names: Vec<_> = order
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["irqbypass.ko", "kvm.ko", "kvm-amd.ko"]);
        assert!(kernel.load_order(&["no_such"]).is_err());
    }
}
