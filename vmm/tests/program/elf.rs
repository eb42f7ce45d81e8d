//! ELF kernels of a few instructions, with a PVH note.

/// Where the instructions are loaded and entered.
pub(crate) const ENTRY: u32 = 0x10_0000;

const FILE_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const NOTE_AT: u64 = FILE_HEADER + 2 * PROGRAM_HEADER;
const NOTE_LEN: u64 = 20;
const CODE_AT: u64 = 0x100;

/// An ELF file that is entered with `code`, in 32-bit protected mode.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    let code_len = code.len() as u64;
    let mut file = Vec::new();
    // e_ident: 64 bits, little-endian, version 1; then an executable for x86-64.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    file.extend(u64::from(ENTRY).to_le_bytes());
    file.extend(FILE_HEADER.to_le_bytes()); // e_phoff
    file.extend([0; 12]); // e_shoff, e_flags
    for half in [FILE_HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let entry = u64::from(ENTRY);
    program_header(&mut file, 1, [CODE_AT, entry, entry, code_len, code_len]); // PT_LOAD
    program_header(&mut file, 4, [NOTE_AT, 0, 0, NOTE_LEN, NOTE_LEN]); // PT_NOTE
    for word in [4, 4, 18] {
        file.extend(u32::to_le_bytes(word)); // lengths, XEN_ELFNOTE_PHYS32_ENTRY
    }
    file.extend(b"Xen\0");
    file.extend(ENTRY.to_le_bytes());
    file.resize(CODE_AT as usize, 0);
    file.extend(code);
    file
}

fn program_header(file: &mut Vec<u8>, kind: u32, fields: [u64; 5]) {
    file.extend(kind.to_le_bytes());
    file.extend(7_u32.to_le_bytes());
    for field in fields {
        file.extend(field.to_le_bytes());
    }
    file.extend(4_u64.to_le_bytes()); // p_align
}

/// `out` of `value` to `port`.
pub(crate) fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee] // mov al, value; mov dx, port; out dx, al
}

/// Jumps to itself.
pub(crate) fn forever() -> Vec<u8> {
    vec![0xeb, 0xfe]
}

/// Sends what comes in on the serial port out again.
pub(crate) fn echo() -> Vec<u8> {
    vec![
        0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd (line status)
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1 (data ready)
        0x74, 0xf7, // jz again
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8 (data)
        0xec, // in al, dx
        0xee, // out dx, al
        0xeb, 0xef, // jmp again
    ]
}
