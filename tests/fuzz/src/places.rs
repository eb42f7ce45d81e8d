//! Where the metadata of a sound image is.

/// Bytes of the header and what follows it that are worth changing.
const HEADER: usize = 480;
/// Entries of one table that are worth changing when they are not in use.
const UNUSED: usize = 6;

/// A big-endian number of up to 8 bytes; what lies beyond the end is 0.
pub fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
    (at..at + len).fold(0, |word, at| {
        word << 8 | u64::from(bytes.get(at).copied().unwrap_or(0))
    })
}

/// What the header says of the size of a cluster; a likely one if that is nonsense.
pub fn cluster_size(bytes: &[u8]) -> u64 {
    1 << word(bytes, 20, 4).clamp(9, 21)
}

/// Offsets of everything that says how the image is to be read.
pub fn of(bytes: &[u8]) -> Vec<usize> {
    let cluster = cluster_size(bytes) as usize;
    let mut places: Vec<usize> = (4..HEADER.min(cluster)).step_by(4).collect();
    let offset = |at: usize| (word(bytes, at, 8) & 0x00ff_ffff_ffff_fe00) as usize;
    let (l1, l1_entries) = (offset(40), word(bytes, 36, 4) as usize);
    tables(bytes, l1, l1_entries, &mut places);
    // The refcount table, and the blocks it leads to.
    let table = offset(48);
    let in_use = |at: &usize| word(bytes, *at, 8) != 0;
    for at in entries(table, cluster / 8).filter(in_use) {
        places.push(at);
        places.extend(entries(offset(at), 24));
    }
    places.extend(entries(table, UNUSED));
    let snapshots = word(bytes, 60, 4) as usize;
    if snapshots > 0 {
        let table = offset(64);
        places.extend((table..table + 60 * snapshots).step_by(4));
        tables(
            bytes,
            offset(table),
            word(bytes, table + 8, 4) as usize,
            &mut places,
        );
    }
    places.extend(bitmaps(bytes));
    places.retain(|at| *at < bytes.len());
    places
}

fn entries(table: usize, count: usize) -> impl Iterator<Item = usize> + Clone {
    (0..count).map(move |index| table + 8 * index)
}

/// An L1 table and the L2 tables it leads to.
fn tables(bytes: &[u8], l1: usize, count: usize, places: &mut Vec<usize>) {
    let in_use = |at: &usize| word(bytes, *at, 8) != 0;
    places.extend(entries(l1, count.min(UNUSED)));
    for at in entries(l1, count).filter(in_use) {
        let table = (word(bytes, at, 8) & 0x00ff_ffff_ffff_fe00) as usize;
        let l2 = entries(table, cluster_size(bytes) as usize / 8);
        places.push(at);
        places.extend(l2.clone().take(UNUSED));
        places.extend(l2.filter(in_use));
    }
}

/// The bitmap directory, and the tables and bits it leads to.
fn bitmaps(bytes: &[u8]) -> Vec<usize> {
    const EXTENSION: u64 = 0x2385_2875;
    let mut at = if word(bytes, 4, 4) < 3 {
        72
    } else {
        word(bytes, 100, 4) as usize
    };
    while at < bytes.len() && word(bytes, at, 4) != 0 {
        let len = word(bytes, at + 4, 4) as usize;
        if word(bytes, at, 4) == EXTENSION {
            let (size, directory) = (word(bytes, at + 16, 8), word(bytes, at + 24, 8) as usize);
            let mut places: Vec<usize> =
                (directory..directory + size as usize).step_by(4).collect();
            let table = word(bytes, directory, 8) as usize;
            places.extend(entries(table, 4));
            return places;
        }
        at += 8 + len.next_multiple_of(8);
    }
    Vec::new()
}
