//! Kernels of both formats, whole and broken, in guest memory.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use bulkhead_boot::{Entry, Error, Initramfs, Kernel, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
const RAM: u64 = 64 * MIB;

fn memory() -> (GuestMemoryMmap, Layout) {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    (ram, Layout::new(RAM))
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A bzImage: one setup sector, and a protected-mode part of 4 KiB that is to be loaded at 16 MiB.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &256_u32.to_le_bytes()); // syssize, in 16 bytes
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x234, &[1]); // relocatable_kernel
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &(16 * MIB).to_le_bytes()); // pref_address
    put(0x260, &(8 * MIB as u32).to_le_bytes()); // init_size
    image.extend([0x90; 4096]);
    image
}

/// An ELF kernel with 16 bytes at 2 MiB, and a PVH note or not.
fn elf(note: bool) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    for word in [2 * MIB, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64_u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, fields: [u64; 6]| {
        file.extend(kind.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for field in fields {
            file.extend(field.to_le_bytes());
        }
    };
    header(1, [0x100, 2 * MIB, 2 * MIB, 16, 4096, 4]);
    header(if note { 4 } else { 0 }, [176, 0, 0, 20, 20, 4]);
    for word in [4, 4, 18_u32] {
        file.extend(word.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend((2 * MIB as u32 + 8).to_le_bytes());
    file.resize(0x100, 0);
    file.extend(*b"sixteen bytes...");
    file
}

fn load(bytes: &[u8]) -> Result<Kernel, Error> {
    let (memory, layout) = memory();
    Kernel::load(&memory, &layout, &mut file(bytes))
}

#[test]
fn a_bzimage_is_entered_in_long_mode_with_boot_parameters() {
    let (memory, layout) = memory();
    let kernel = Kernel::load(&memory, &layout, &mut file(&bzimage())).unwrap();
    let initramfs = Initramfs::load(&memory, &layout, &kernel, &mut file(b"cpio")).unwrap();

    let entry = kernel.prepare(&memory, &layout, "console=ttyS0", Some(initramfs), 0xe_0000);

    let Entry::Long {
        entry,
        boot_params,
        page_table,
        gdt,
    } = entry.unwrap()
    else {
        panic!("not in long mode");
    };
    assert_eq!(entry, 16 * MIB + 0x200);
    let u8_at = |at: u64| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
    let u32_at = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
    let u64_at = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    assert_eq!(u8_at(16 * MIB), 0x90);
    assert_eq!(u64_at(boot_params + 0x70), 0xe_0000); // acpi_rsdp_addr
    assert_eq!(u8_at(boot_params + 0x1e8), 4); // e820_entries
    assert_eq!(u32_at(boot_params + 0x218), initramfs.start as u32);
    assert_eq!(u32_at(boot_params + 0x21c), 4); // ramdisk_size
    let mut cmdline = [0; 14];
    let at = GuestAddress(u32_at(boot_params + 0x228).into());
    memory.read_slice(&mut cmdline, at).unwrap();
    assert_eq!(&cmdline, b"console=ttyS0\0");
    // 16 MiB is mapped to itself: level 4, 3, 2.
    let level_3 = u64_at(page_table) & !0xfff;
    let level_2 = u64_at(level_3) & !0xfff;
    assert_eq!(u64_at(level_2 + 8 * 8), (16 * MIB) | 0x83);
    assert_eq!(
        u64_at(gdt.0 + 0x10) >> 53 & 1,
        1,
        "the code segment is a 64-bit one"
    );
}

#[test]
fn an_elf_kernel_with_a_pvh_note_is_entered_at_the_notes_address() {
    let (memory, layout) = memory();
    let kernel = Kernel::load(&memory, &layout, &mut file(&elf(true))).unwrap();
    let initramfs = Initramfs::load(&memory, &layout, &kernel, &mut file(b"cpio")).unwrap();

    let entry = kernel.prepare(&memory, &layout, "quiet", Some(initramfs), 0xe_0000);

    let Entry::Pvh { entry, start_info } = entry.unwrap() else {
        panic!("not with PVH");
    };
    assert_eq!(entry, 2 * MIB as u32 + 8);
    let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
    let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let info = u64::from(start_info);
    assert_eq!((word(info), word(info + 12)), (0x336e_c578, 1)); // magic, nr_modules
    assert_eq!(long(long(info + 16)), initramfs.start);
    assert_eq!(long(info + 32), 0xe_0000);
    assert_eq!(word(info + 48), 4); // memmap_entries
    assert_eq!(long(long(info + 40) + 2 * 24), MIB); // the third begins at 1 MiB
}

#[test]
fn an_elf_kernel_without_a_note_is_entered_in_long_mode() {
    let (memory, layout) = memory();
    let kernel = Kernel::load(&memory, &layout, &mut file(&elf(false))).unwrap();

    let entry = kernel.prepare(&memory, &layout, "", None, 0).unwrap();

    assert!(matches!(entry, Entry::Long { entry, .. } if entry == 2 * MIB));
}

#[test]
fn what_is_cut_off_anywhere_is_refused() {
    for image in [bzimage(), elf(true), elf(false)] {
        for len in 0..image.len() {
            assert!(load(&image[..len]).is_err(), "{len} of {}", image.len());
        }
        assert!(load(&image).is_ok());
    }
}

#[test]
fn a_header_with_any_byte_wrong_never_panics() {
    for image in [bzimage(), elf(true), elf(false)] {
        let (memory, layout) = memory();
        let mut file = file(&image);
        for (at, right) in image.iter().enumerate().take(0x270) {
            for wrong in [0, 1, 0x7f, 0x80, 0xff] {
                file.write_all_at(&[wrong], at as u64).unwrap();
                if let Ok(kernel) = Kernel::load(&memory, &layout, &mut file) {
                    // Whether or not there is room then.
                    let _ = kernel.prepare(&memory, &layout, "", None, 0);
                }
            }
            file.write_all_at(&[*right], at as u64).unwrap();
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut large = bzimage();
    large[0x260..0x264].copy_from_slice(&(49 * MIB as u32).to_le_bytes());
    assert!(matches!(load(&large), Err(Error::KernelTooLarge(end)) if end == 65 * MIB));

    let (memory, layout) = memory();
    let kernel = Kernel::load(&memory, &layout, &mut file(&bzimage())).unwrap();
    let load = |len: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        Initramfs::load(&memory, &layout, &kernel, &mut { file })
    };
    assert_eq!(load(40 * MIB).unwrap().start, 24 * MIB);
    assert!(matches!(
        load(40 * MIB + 1),
        Err(Error::InitramfsTooLarge { .. })
    ));
    assert!(matches!(load(0), Err(Error::EmptyInitramfs)));
}

#[test]
fn a_command_line_has_a_length_and_no_zero_byte() {
    let (memory, layout) = memory();
    let kernel = Kernel::load(&memory, &layout, &mut file(&bzimage())).unwrap();
    let prepare = |cmdline: &str| kernel.prepare(&memory, &layout, cmdline, None, 0);

    assert!(prepare(&"x".repeat(2047)).is_ok());
    assert!(matches!(
        prepare(&"x".repeat(2048)),
        Err(Error::Cmdline(2047))
    ));
    assert!(matches!(prepare("a\0b"), Err(Error::Cmdline(_))));
}
