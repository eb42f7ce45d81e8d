//! What a process that starts others sees of the host's files, and they with it.

use std::path::{Path, PathBuf};

use super::ConfineError;
use super::namespaces::{self, Access, Network, Visible};
use super::paths::{Allowed, Rules};

/// The files, programs and TCP ports of a process that starts other programs. Those have what it has, at the most: it
/// has capabilities and a list of system calls of its own. Any other process is confined by a
/// [`Confinement`](super::Confinement), all at once.
#[derive(Clone, Debug, Default)]
pub struct Files {
    allowed: Allowed,
    libraries: Vec<PathBuf>,
}

impl Files {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The file, or what is below the folder, may be read.
    #[must_use]
    pub fn read_path(mut self, path: impl AsRef<Path>) -> Self {
        self.allowed.read.push(path.as_ref().to_owned());
        self
    }

    /// The file, or what is below the folder, may be read and written.
    #[must_use]
    pub fn write_path(mut self, path: impl AsRef<Path>) -> Self {
        self.allowed.write.push(path.as_ref().to_owned());
        self
    }

    /// What is below the folder may be read and loaded, but not started.
    #[must_use]
    pub fn library_path(mut self, folder: impl AsRef<Path>) -> Self {
        self.libraries.push(folder.as_ref().to_owned());
        self
    }

    /// The program may be started.
    #[must_use]
    pub fn program(mut self, path: impl AsRef<Path>) -> Self {
        self.allowed.programs.push(path.as_ref().to_owned());
        self
    }

    /// TCP ports to listen on; 0 stands for any that the kernel chooses.
    #[must_use]
    pub fn bind_tcp(mut self, ports: &[u16]) -> Self {
        self.allowed.bind.extend_from_slice(ports);
        self
    }

    /// TCP ports to connect to.
    #[must_use]
    pub fn connect_tcp(mut self, ports: &[u16]) -> Self {
        self.allowed.connect.extend_from_slice(ports);
        self
    }

    /// Moves the process to mount and IPC namespaces of its own, with a root folder in which there is nothing but these
    /// files. Its network stays the host's. `Some` is what the host does not allow; the process sees what it saw before
    /// then.
    ///
    /// # Errors
    /// When the process cannot go on.
    pub fn isolate(&self) -> Result<Option<String>, ConfineError> {
        let loaded = self.libraries.iter().chain(&self.allowed.programs);
        let mut visible: Vec<_> = loaded
            .map(|path| Visible {
                path: path.clone(),
                access: Access::Execute,
            })
            .collect();
        visible.extend(self.allowed.visible());
        namespaces::enter(&visible, Network::Host)
    }

    /// Restricts the calling thread, and what it starts, to these files and ports, and to signals to each other. Those
    /// that are not there are left out. Whether the kernel has Landlock.
    ///
    /// # Errors
    /// When the kernel refuses the rules.
    pub fn restrict(mut self) -> Result<bool, ConfineError> {
        self.allowed.read.append(&mut self.libraries);
        let Allowed {
            read,
            write,
            programs,
            ..
        } = &mut self.allowed;
        for paths in [read, write, programs] {
            paths.retain(|path| path.exists());
        }
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| ConfineError::Capabilities(error.into()))?;
        Rules::new(&self.allowed)?.restrict()
    }
}
