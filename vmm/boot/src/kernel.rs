//! The kernel: detects its format, loads it, and prepares its entry.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::entry::{Entry, Prepared};
use crate::layout::{CMDLINE, HIGH_START, HOLE, Layout};
use crate::{Error, Initramfs, elf, linux, pvh};

/// The offset and the value of the magic in a bzImage's header.
const BZIMAGE_MAGIC: (u64, &[u8; 4]) = (0x202, b"HdrS");
/// The kernel has a 64-bit entry point, [`ENTRY_64`] bytes after its beginning.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// The longest command line of kernels whose header does not have the length: Linux's `COMMAND_LINE_SIZE` without the
/// final zero.
const CMDLINE_MAX: usize = 2047;
/// The longest command line that the layout has room for.
const CMDLINE_ROOM: usize = 0xffff;

enum Protocol {
    Linux { entry: u64, header: setup_header },
    Pvh { entry: u32 },
}

/// A kernel that has been loaded into guest memory.
pub struct Kernel {
    protocol: Protocol,
    end: u64,
    initramfs_limit: u64,
    cmdline_max: usize,
}

impl Kernel {
    /// Loads a bzImage or an ELF image.
    ///
    /// # Errors
    /// When the file is not a whole kernel for this machine, or does not fit.
    pub fn load(memory: &GuestMemoryMmap, layout: &Layout, file: &mut File) -> Result<Self, Error> {
        let size = file.seek(SeekFrom::End(0)).map_err(Error::Read)?;
        if size == 0 {
            return Err(Error::EmptyKernel);
        }
        let mut magic = [0; 4];
        if has_magic(file, 0, elf::MAGIC, &mut magic)? {
            Self::load_elf(memory, layout, file, size)
        } else if has_magic(file, BZIMAGE_MAGIC.0, BZIMAGE_MAGIC.1, &mut magic)? {
            Self::load_bzimage(memory, layout, file, size)
        } else {
            Err(Error::NotAKernel("neither's magic number is in it"))
        }
    }

    fn load_elf(
        memory: &GuestMemoryMmap,
        layout: &Layout,
        file: &mut File,
        size: u64,
    ) -> Result<Self, Error> {
        let place = elf::check(file, size)?;
        fits(layout, place.end)?;
        let loaded = Elf::load(memory, None, file, None).map_err(Error::Load)?;
        let protocol = match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(entry) => Protocol::Pvh {
                entry: u32::try_from(entry.0)
                    .map_err(|_| Error::NotAKernel("its entry point is above 4 GiB"))?,
            },
            _ if place.start >= HIGH_START && place.contains(&loaded.kernel_load.0) => {
                Protocol::Linux {
                    entry: loaded.kernel_load.0,
                    header: linux::default_header(),
                }
            }
            _ => return Err(Error::NotAKernel("it is a program of another kind")),
        };
        Ok(Self {
            protocol,
            end: place.end,
            initramfs_limit: HOLE,
            cmdline_max: CMDLINE_MAX,
        })
    }

    fn load_bzimage(
        memory: &GuestMemoryMmap,
        layout: &Layout,
        file: &mut File,
        size: u64,
    ) -> Result<Self, Error> {
        let header = read_bzimage_header(file, size)?;
        let start = match header.relocatable_kernel {
            0 => header.code32_start.into(),
            _ => header.pref_address,
        };
        // The kernel decompresses itself in place, so it needs more memory than the file has bytes.
        let end = start
            .checked_add(u64::from(header.init_size).max(size))
            .ok_or(Error::KernelTooLarge(u64::MAX))?;
        if start < HIGH_START {
            return Err(Error::NotAKernel("it asks to be loaded below 1 MiB"));
        }
        fits(layout, end)?;
        let KernelLoaderResult { setup_header, .. } =
            BzImage::load(memory, Some(GuestAddress(start)), file, None).map_err(Error::Load)?;
        let initramfs_limit = match header.initrd_addr_max {
            0 => HOLE,
            max => u64::from(max) + 1,
        };
        Ok(Self {
            protocol: Protocol::Linux {
                entry: start + ENTRY_64,
                header: setup_header.unwrap_or(header),
            },
            end,
            initramfs_limit,
            cmdline_max: (header.cmdline_size as usize).clamp(255, CMDLINE_ROOM),
        })
    }

    /// The end of the memory that the kernel needs to start.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The end of the addresses at which the kernel accepts an initramfs.
    #[must_use]
    pub fn initramfs_limit(&self) -> u64 {
        self.initramfs_limit
    }

    /// Writes command line and boot parameters, and returns how the kernel is entered. `rsdp` is what
    /// [`crate::acpi::write`] returned.
    ///
    /// # Errors
    /// When the command line is too long or has a zero byte, or guest memory is too small.
    pub fn prepare(
        &self,
        memory: &GuestMemoryMmap,
        layout: &Layout,
        cmdline: &str,
        initramfs: Option<Initramfs>,
        rsdp: u64,
    ) -> Result<Entry, Error> {
        if cmdline.len() > self.cmdline_max || cmdline.contains('\0') {
            return Err(Error::Cmdline(self.cmdline_max));
        }
        let terminated = [cmdline.as_bytes(), &[0]].concat();
        memory.write_slice(&terminated, GuestAddress(CMDLINE))?;
        let prepared = Prepared { rsdp, initramfs };
        match &self.protocol {
            Protocol::Linux { entry, header } => {
                linux::prepare(memory, layout, *entry, header, &prepared)
            }
            Protocol::Pvh { entry } => pvh::prepare(memory, layout, *entry, &prepared),
        }
    }
}

fn has_magic(file: &File, at: u64, magic: &[u8; 4], buffer: &mut [u8; 4]) -> Result<bool, Error> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(buffer == magic),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::Read(error)),
    }
}

fn fits(layout: &Layout, end: u64) -> Result<(), Error> {
    if end > layout.low_ram_end() {
        return Err(Error::KernelTooLarge(end));
    }
    Ok(())
}

/// Reads the header of a bzImage, and checks that the file is as long as it says.
fn read_bzimage_header(file: &File, size: u64) -> Result<setup_header, Error> {
    use vm_memory::ByteValued;

    const OFFSET: u64 = 0x1f1;
    let mut header = setup_header::default();
    file.read_exact_at(header.as_mut_slice(), OFFSET)
        .map_err(|_| Error::TruncatedKernel {
            announced: OFFSET + size_of::<setup_header>() as u64,
            actual: size,
        })?;
    let setup_sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let announced = (setup_sectors + 1) * 512 + u64::from(header.syssize) * 16;
    if announced > size {
        return Err(Error::TruncatedKernel {
            announced,
            actual: size,
        });
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Error::NotAKernel("it has no 64-bit entry point"));
    }
    Ok(header)
}
