//! Operations that change what the header says.

use qcow::{ErrorKind, Format, Image};

use crate::peer::medium::SECTOR;
use crate::workload::{BASE, DATA, Workload};

impl Workload {
    /// Changes of the format.
    pub(crate) fn amend(&mut self, image: &Image) {
        match self.rng.below(12) {
            0 if self.options.version < 3 && crate::only_version().is_none() => {
                self.say(|| "upgrade".to_owned());
                image.set_version(3).unwrap();
                self.options.version = 3;
            }
            1..3 if self.options.version >= 3 => {
                let lazy = self.rng.chance(50);
                self.say(|| format!("lazy refcounts: {lazy}"));
                image.set_lazy_refcounts(lazy).unwrap();
            }
            3..5 if self.options.version >= 3 => {
                let bits = *self.rng.pick(&[4, 8, 16, 32, 64]);
                self.say(|| format!("refcounts of {bits} bits"));
                if let Err(error) = image.set_refcount_bits(bits) {
                    assert_eq!(
                        error.kind(),
                        ErrorKind::InvalidInput,
                        "seed {}: {error}",
                        self.seed
                    );
                }
            }
            5 => self.empty(image),
            6 => self.downgrade(image),
            7..10 if self.below.is_some() => self.rename(image, 0),
            10.. if self.options.data_file.is_some() => self.rename(image, 1),
            _ => {}
        }
    }

    /// Drops all: what is below shows again.
    fn empty(&mut self, image: &Image) {
        let Some((_, below)) = &self.below else {
            return;
        };
        let mut disk = vec![0; self.model.now.len()];
        (disk.iter_mut().zip(below)).for_each(|(sector, value)| *sector = *value);
        self.note(0, &disk);
        self.say(|| "empty".to_owned());
        image.make_empty().unwrap();
    }
    /// Back to version 2, if the image has nothing that version 2 has not.
    fn downgrade(&mut self, image: &Image) {
        if self.options.version < 3 {
            return;
        }
        self.say(|| "downgrade".to_owned());
        match image.set_version(2) {
            Ok(()) => self.options.version = 2,
            Err(error) => {
                let refused = matches!(
                    error.kind(),
                    ErrorKind::Unsupported | ErrorKind::InvalidInput
                );
                assert!(refused, "seed {}: {error}", self.seed);
            }
        }
    }

    /// Records another name of the backing file, or of the external data file: another way to the same file.
    fn rename(&mut self, image: &Image, which: usize) {
        let unknown = self.unknown.as_ref().map_or(0, |data| data.len() + 16);
        let room = (self.options.cluster_size as usize).saturating_sub(SECTOR) / 2;
        let most = match which {
            0 => room.saturating_sub(unknown + 180).clamp(100, 1000),
            _ => 100,
        };
        let len = self.rng.below(most as u64) as usize;
        let mut name = String::from("./");
        while name.len() < len {
            let part: &str = self.rng.pick::<&str>(&["./", "/"]);
            name.push_str(part);
        }
        name.push_str([BASE, DATA][which]);
        self.say(|| format!("call it {name}"));
        let old = self.model.names[which].clone();
        self.model.names[which].push(name.clone());
        let done = match which {
            0 => image.change_backing_file(Some(&name), Some(Format::Raw)),
            _ => image.set_data_file_name(&name),
        };
        if let Err(error) = done {
            // There is no room for it.
            assert_eq!(
                (error.kind(), self.options.cluster_size),
                (ErrorKind::InvalidInput, 512),
                "seed {}: {error}",
                self.seed
            );
            self.model.names[which] = old;
        }
    }
}
