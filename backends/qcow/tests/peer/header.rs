//! The header of an image as bytes: extensions that no program here knows.

const FEATURE_NAMES: u32 = 0x6803_f857;
/// An extension of nobody's.
pub(crate) const UNKNOWN: u32 = 0x4242_4242;

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// What stands in an extension of nobody's.
pub(crate) fn filling(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 + 1).collect()
}

/// The extensions of an image: kind, and data.
pub(crate) fn extensions(image: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut at = match number(image, 4) {
        2 => 72,
        _ => number(image, 100) as usize,
    };
    let name = number(image, 12) as usize;
    let end = if name == 0 { image.len() } else { name };
    let mut list = Vec::new();
    while at + 8 <= end && number(image, at) != 0 {
        let (kind, len) = (number(image, at), number(image, at + 4) as usize);
        list.push((kind, image[at + 8..at + 8 + len].to_vec()));
        at += 8 + len.next_multiple_of(8);
    }
    list
}

/// Gives an image one more extension, in front of the name of its backing file, as QEMU lays out a header. Names of
/// features go.
pub(crate) fn add_unknown(image: &mut [u8], len: usize) {
    let length = match number(image, 4) {
        2 => 72,
        _ => number(image, 100) as usize,
    };
    let name = {
        let (at, len) = (number(image, 12) as usize, number(image, 16) as usize);
        image[at..at + len].to_vec()
    };
    let mut list = extensions(image);
    list.retain(|(kind, _)| *kind != FEATURE_NAMES);
    list.push((UNKNOWN, filling(len)));
    let mut header = image[..length].to_vec();
    for (kind, data) in list {
        header.extend_from_slice(&kind.to_be_bytes());
        header.extend_from_slice(&(data.len() as u32).to_be_bytes());
        header.extend_from_slice(&data);
        header.resize(header.len().next_multiple_of(8), 0);
    }
    header.extend_from_slice(&[0; 8]);
    if !name.is_empty() {
        let at = header.len() as u64;
        header[8..16].copy_from_slice(&at.to_be_bytes());
        header.extend_from_slice(&name);
    }
    assert!(header.len() <= 1 << number(image, 20));
    image[..header.len()].copy_from_slice(&header);
}

/// The extension of nobody's, as it is in an image.
pub(crate) fn unknown(image: &[u8]) -> Option<Vec<u8>> {
    let mut list = extensions(image).into_iter();
    list.find(|(kind, _)| *kind == UNKNOWN)
        .map(|(_, data)| data)
}
