//! A backend is killed at any moment: the next one does every request that was not completed, and none twice.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use peer::{Backend, Guest, RING_SIZE, raw_image};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES};

/// Each has three descriptors.
const REQUESTS: u16 = RING_SIZE / 3;
const LENGTH: u32 = 256 << 10;
const SECTORS: u64 = LENGTH as u64 / 512;

fn heads(done: &[(u32, u32)]) -> BTreeSet<u32> {
    done.iter().map(|&(head, _)| head).collect()
}

const SIZE: u64 = REQUESTS as u64 * LENGTH as u64;

/// What the guest writes to.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Raw,
    /// On a base image that has other data everywhere.
    Overlay {
        lazy_refcounts: bool,
    },
}

impl Kind {
    fn format(self) -> qcow::Format {
        match self {
            Self::Raw => qcow::Format::Raw,
            Self::Overlay { .. } => qcow::Format::Qcow2,
        }
    }

    fn make(self, folder: &Path) -> PathBuf {
        let base = folder.join("base.raw");
        std::fs::write(&base, vec![0xba; SIZE as usize]).unwrap();
        let Self::Overlay { lazy_refcounts } = self else {
            return base;
        };
        let overlay = folder.join("overlay.qcow2");
        let mut options = qcow::CreateOptions::new(qcow::Format::Qcow2, SIZE);
        options.backing_file = Some("base.raw".to_owned());
        options.backing_format = Some(qcow::Format::Raw);
        options.lazy_refcounts = lazy_refcounts;
        qcow::create(&overlay, &options).unwrap();
        overlay
    }

    fn content(self, image: &Path) -> Vec<u8> {
        let options = qcow::OpenOptions::new(self.format())
            .follow_references()
            .locking(qcow::Locking::Shared);
        let image = qcow::Image::open(image, &options).unwrap();
        let mut content = vec![0; SIZE as usize];
        image.read_at(0, &mut content).unwrap();
        content
    }
}

/// Posts all writes, kills the backend when `moment` returns, starts another and waits for the rest. Returns what the
/// disk holds then; `None` if the backend was too fast to be killed.
fn killed_when(
    kind: Kind,
    moment: impl Fn(&Guest),
    sector_of: impl Fn(u64) -> u64,
) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let image = kind.make(folder.path());
    let format = kind.format().name();
    let mut backend = Backend::start(&image, format, &[]);
    let mut guest = Guest::connect(&backend, 1);
    let mut posted = BTreeSet::new();
    for slot in 0..u64::from(REQUESTS) {
        guest.put(Guest::data(slot), &vec![slot as u8 + 1; LENGTH as usize]);
        let what = (VIRTIO_BLK_T_OUT, sector_of(slot));
        posted.insert(u32::from(guest.post_block(0, slot, what, (LENGTH, false))));
    }
    guest.kick(0);
    moment(&guest);
    backend.kill_and_restart(&image, format, &[]);
    if guest.used_index(0) == REQUESTS {
        return None;
    }

    guest.reconnect(&backend);
    let done = guest.wait_used(0, REQUESTS);

    assert_eq!(heads(&done), posted, "each exactly once");
    assert_eq!(guest.used_index(0), REQUESTS);
    for slot in 0..u64::from(REQUESTS) {
        assert_eq!(guest.status(slot), 0);
    }
    drop(guest);
    let (status, said) = backend.end();
    assert!(status.success(), "{said}");
    Some(kind.content(&image))
}

/// Kills at several points, each as often as it takes to be in time.
fn at_many_points(kind: Kind, sector_of: impl Fn(u64) -> u64, check: impl Fn(Vec<u8>)) {
    for after in [0, 1, 2, 5, 11, 17, 23] {
        let moment = |guest: &Guest| {
            while guest.used_index(0) < after {
                std::hint::spin_loop();
            }
        };
        let killed = (0..50).find_map(|_| killed_when(kind, moment, &sector_of));
        check(killed.expect("never killed in time"));
    }
}

fn each_write_is_there(content: Vec<u8>) {
    for (slot, part) in content.chunks(LENGTH as usize).enumerate() {
        let wrong = part.iter().position(|&byte| byte != slot as u8 + 1);
        assert_eq!(wrong, None, "write {slot}");
    }
}

#[test]
fn every_write_is_done_once_wherever_the_back_end_dies() {
    at_many_points(Kind::Raw, |slot| slot * SECTORS, each_write_is_there);
}

#[test]
fn writes_to_one_place_end_with_the_last_one() {
    at_many_points(
        Kind::Raw,
        |_| 0,
        |content| {
            let last = REQUESTS as u8;
            assert!(content[..LENGTH as usize].iter().all(|&byte| byte == last));
        },
    );
}

#[test]
fn a_qcow2_image_has_all_writes_wherever_the_back_end_dies() {
    let overlay = Kind::Overlay {
        lazy_refcounts: false,
    };
    // It completes them all at once, so the points in between are points in time.
    for point in 0..12u32 {
        let moment = Duration::from_micros(300) * point * point;
        let wait = |_: &Guest| std::thread::sleep(moment);
        if let Some(content) = killed_when(overlay, wait, |slot| slot * SECTORS) {
            each_write_is_there(content);
        }
    }
}

#[test]
fn completed_writes_are_in_a_qcow2_image_even_if_they_were_never_flushed() {
    for lazy_refcounts in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let image = Kind::Overlay { lazy_refcounts }.make(folder.path());
        let mut backend = Backend::start(&image, "qcow2", &[]);
        let mut guest = Guest::connect(&backend, 1);
        for block in 0..4 {
            guest.write(block * 128, &[1 + block as u8; 1024]);
        }
        let zeroes = [&128u64.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
        guest.put(Guest::data(0), &zeroes);
        assert_eq!(guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false), 0);

        backend.kill_and_restart(&image, "qcow2", &[]);
        guest.reconnect(&backend);

        for (sector, expected) in [
            (0, 1),
            (1, 1),
            (2, 0xba),
            (128, 0),
            (129, 2),
            (256, 3),
            (384, 4),
            (512, 0xba),
        ] {
            assert_eq!(guest.read(sector, 512), [expected; 512], "sector {sector}");
        }
    }
}

/// Writes into the in-flight area what a backend would that takes several requests at once.
struct Record<'a>(&'a std::fs::File);

impl Record<'_> {
    fn header(&self, last_batch_head: u16, used_idx: u16) {
        let fields = [1, RING_SIZE, last_batch_head, used_idx];
        let bytes: Vec<u8> = fields
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect();
        self.0.write_all_at(&bytes, 8).unwrap();
    }

    fn entry(&self, head: u16, next: u16, counter: u64) {
        let at = 16 + 16 * u64::from(head);
        self.0.write_all_at(&[1], at).unwrap();
        self.0.write_all_at(&next.to_ne_bytes(), at + 6).unwrap();
        self.0.write_all_at(&counter.to_ne_bytes(), at + 8).unwrap();
    }
}

#[test]
fn what_was_in_flight_is_done_again_in_its_order_and_before_the_rest() {
    let (_folder, image) = raw_image(1 << 20);
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect_only(&backend, 1);
    let heads: Vec<u16> = (0..8)
        .map(|slot| {
            guest.put(Guest::data(slot), &[0xee; 512]);
            guest.post_block(0, slot, (VIRTIO_BLK_T_IN, slot), (512, true))
        })
        .collect();
    // A process took 0 to 6 and completed 0, 3 and, last, 5 and 1 at once, but died before it recorded that: 6, 2, 4
    // are left, taken in this order. Nobody took 7.
    guest.negotiate();
    let wanted = vhost::vhost_user::message::VhostUserInflight::new(0, 0, 1, RING_SIZE);
    let (layout, file) = guest.frontend.get_inflight_fd(&wanted).unwrap();
    let record = Record(&file);
    record.header(heads[5], 2);
    record.entry(heads[1], heads[3], 3);
    record.entry(heads[5], heads[1], 4);
    record.entry(heads[6], 0, 10);
    record.entry(heads[2], 0, 11);
    record.entry(heads[4], 0, 12);
    guest.inflight = Some((layout, file));
    guest.put(guest.rings[0].used_ring() + 2, &4u16.to_le_bytes());
    drop(std::mem::replace(&mut guest.frontend, {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        vhost::vhost_user::Frontend::from_stream(ours, 1)
    }));
    let (status, said) = backend.end();
    assert!(status.success(), "{said}");

    let backend = Backend::start(&image, "raw", &[]);
    guest.reconnect(&backend);

    guest.wait_used(0, 8);
    let order: Vec<u32> = (4..8).map(|number| guest.used(0, number).0).collect();
    let expected = [6, 2, 4, 7].map(|slot: usize| u32::from(heads[slot]));
    assert_eq!(order, expected);
    for slot in 0..8 {
        let redone = [6, 2, 4, 7].contains(&slot);
        let expected = if redone { slot as u8 } else { 0xee };
        assert_eq!(guest.get(Guest::data(slot), 512), [expected; 512]);
    }
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 8);
}

#[test]
fn a_notification_that_died_with_its_sender_is_made_up_for() {
    let (_folder, image) = raw_image(1 << 20);
    let mut backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect(&backend, 1);
    guest.read(0, 512);
    while guest.rings[0].call.read().is_ok() {}

    backend.kill_and_restart(&image, "raw", &[]);
    guest.reconnect(&backend);

    assert!(peer::readable(&guest.rings[0].call, peer::PATIENCE));
}

#[test]
fn a_record_that_makes_no_sense_costs_the_ring_and_not_the_process() {
    let (_folder, image) = raw_image(1 << 20);
    let mut backend = Backend::start(&image, "raw", &["--persist"]);
    for damage in 0..2 {
        let mut guest = Guest::connect_only(&backend, 1);
        guest.negotiate();
        let wanted = vhost::vhost_user::message::VhostUserInflight::new(0, 0, 1, RING_SIZE);
        let (layout, mut file) = guest.frontend.get_inflight_fd(&wanted).unwrap();
        match damage {
            // A list that leads out of the area.
            0 => Record(&file).header(0xffff, 0xfff0),
            // No record at all.
            _ => file.write_all(&[0xff; 2048]).unwrap(),
        }
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        guest.frontend.set_inflight_fd(&layout, fd).unwrap();
        guest.inflight = Some((layout, file));
        let regions = guest.regions();
        guest.frontend.set_mem_table(&regions).unwrap();
        guest.start_ring(0).unwrap();
        assert!(peer::readable(&guest.rings[0].err, peer::PATIENCE));
    }
    let mut guest = Guest::connect(&backend, 1);
    assert_eq!(guest.read(3, 512), [3; 512]);
    assert!(backend.is_running());
}
