//! What is opened because somebody names it: only files of the right type, only in the folders that are allowed, and at
//! once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use qcow::{AllowedFiles, CreateOptions, ErrorKind, Folder, Format, Image, OpenOptions, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

/// More than any open takes, on a busy machine, too.
const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// What `open` returns, unless it waits for something.
fn at_once<T: Send + 'static>(open: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(open()));
    result.recv_timeout(LONG).expect("it does not return")
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// An image with `name` as its backing file or its data file.
fn image_naming(path: &Path, name: &str, as_data_file: bool) {
    let mut options = CreateOptions::new(Format::Qcow2, MIB);
    if as_data_file {
        // The name is exchanged for one of the same length afterwards, as creating makes the file.
        let stand_in = path.with_file_name("x".repeat(name.len()));
        let recorded = stand_in.to_str().unwrap().to_owned();
        options.data_file = Some(recorded.clone());
        qcow::create(path, &options).unwrap();
        fs::remove_file(&stand_in).unwrap();
        let bytes = fs::read(path).unwrap();
        let at = find(&bytes, recorded.as_bytes());
        let wanted = path.with_file_name(name);
        let mut bytes = bytes;
        bytes[at..at + recorded.len()].copy_from_slice(wanted.to_str().unwrap().as_bytes());
        fs::write(path, bytes).unwrap();
    } else {
        options.backing_file = Some(name.to_owned());
        options.backing_format = Some(Format::Raw);
        qcow::create(path, &options).unwrap();
    }
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    let at = bytes.windows(part.len()).position(|window| window == part);
    at.unwrap()
}

fn opened(path: &Path, options: OpenOptions) -> Result<Image> {
    let path = path.to_owned();
    at_once(move || Image::open(path, &options))
}

fn following() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).follow_references()
}

/// Something of each type that is refused, and how it is called.
fn wrong_types(dir: &Path) -> Vec<(&'static str, &'static str)> {
    fifo(&dir.join("fifo"));
    fs::create_dir(dir.join("folder")).unwrap();
    UnixListener::bind(dir.join("socket")).unwrap();
    symlink("/dev/zero", dir.join("device")).unwrap();
    symlink("fifo", dir.join("link")).unwrap();
    vec![
        ("fifo", "a FIFO"),
        ("folder", "a directory"),
        ("socket", "a socket"),
        ("device", "a character device"),
        ("link", "a FIFO"),
    ]
}

#[track_caller]
fn refused(result: Result<impl Sized>, parts: &[&str]) {
    let error = result.err().expect("it was opened");
    assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

#[test]
fn what_is_no_file_is_refused_at_once_whoever_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, kind) in wrong_types(dir) {
        for writable in [false, true] {
            let raw = OpenOptions::new(Format::Raw).writable(writable);
            refused(opened(&dir.join(name), raw), &[name, kind]);
            let path = dir.join(name);
            refused(at_once(move || qcow::open_file(path, writable)), &[kind]);
        }
        let made = dir.join(name);
        let options = CreateOptions::new(Format::Qcow2, MIB);
        refused(at_once(move || qcow::create(made, &options)), &[kind]);
        for as_data_file in [false, true] {
            let image = dir.join("image");
            image_naming(&image, name, as_data_file);
            let beneath =
                AllowedFiles::beneath([Folder::open(dir).unwrap(), Folder::open("/dev").unwrap()]);
            for allowed in [AllowedFiles::anywhere(), beneath.unwrap()] {
                for writable in [false, true] {
                    let options = following()
                        .writable(writable)
                        .allowed_files(allowed.clone());
                    let words = [name, kind, "named by", "image"];
                    refused(opened(&image, options), &words);
                }
            }
        }
    }
}

#[test]
fn what_an_image_below_names_is_looked_at_in_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    fifo(&dir.path().join("fifo"));
    image_naming(&dir.path().join("middle"), "fifo", false);
    let options = CreateOptions {
        backing_file: Some("middle".into()),
        backing_format: Some(Format::Qcow2),
        ..CreateOptions::new(Format::Qcow2, MIB)
    };
    let top = dir.path().join("top");
    qcow::create(&top, &options).unwrap();
    refused(opened(&top, following()), &["fifo", "a FIFO", "middle"]);
}

#[test]
fn an_image_is_not_its_own_data_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    image_naming(&path, "imagf", true);
    fs::hard_link(&path, dir.path().join("imagf")).unwrap();
    let options = following().locking(qcow::Locking::Off);
    let error = opened(&path, options.writable(true)).unwrap_err();
    assert!(error.to_string().contains("its own data file"), "{error}");
}

#[test]
fn an_open_file_blocks_like_any_other() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = Folder::of_image(file.path()).unwrap();
    let beneath = AllowedFiles::beneath([folder]).unwrap();
    for opened in [
        qcow::open_file(file.path(), true),
        beneath.open(file.path(), true),
    ] {
        let flags = rustix::fs::fcntl_getfl(opened.unwrap()).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK) && flags.contains(OFlags::RDWR));
    }
}

/// `inside/file`, `other/file` and `outside/file`, and a policy that allows `inside` and `other`.
struct Place {
    root: tempfile::TempDir,
    allowed: AllowedFiles,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["inside", "inside/deeper", "other", "outside"] {
            fs::create_dir(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("file"), folder).unwrap();
        }
        symlink("inside", root.path().join("alias")).unwrap();
        let folder = |name: &str| Folder::open(root.path().join(name)).unwrap();
        let allowed = AllowedFiles::beneath([folder("alias"), folder("other")]).unwrap();
        Self { root, allowed }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        symlink(target, self.at(name)).unwrap();
    }

    /// What is read of a file through the gate.
    fn read(&self, name: &str) -> Result<String> {
        let file = self.allowed.open(self.at(name), false)?;
        Ok(std::io::read_to_string(file).unwrap())
    }
}

#[test]
fn links_are_followed_as_far_as_they_stay_in_the_folders() {
    let place = Place::new();
    place.link("deeper/file", "inside/relative");
    place.link(place.at("inside/deeper"), "inside/folder");
    place.link(place.at("other/file"), "inside/across");
    place.link("../outside/../inside/file", "inside/around");
    place.link("inside", "outside/round");
    for (name, content) in [
        ("inside/file", "inside"),
        ("alias/file", "inside"),
        ("alias/../inside/file", "inside"),
        ("inside/./deeper/../file", "inside"),
        ("inside/relative", "inside/deeper"),
        ("inside/folder/file", "inside/deeper"),
        ("inside/folder/../file", "inside"),
        ("inside/across", "other"),
        ("inside/around", "inside"),
        ("other/../inside/file", "inside"),
    ] {
        assert_eq!(place.read(name).unwrap(), content, "{name}");
    }
}

#[test]
fn nothing_outside_the_folders_is_opened() {
    let place = Place::new();
    place.link("../outside/file", "inside/relative");
    place.link(place.at("outside/file"), "inside/absolute");
    place.link(place.at("outside"), "inside/folder");
    place.link("absolute", "inside/twice");
    let outside = fs::File::open(place.at("outside/file")).unwrap();
    let magic = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&outside)
    );
    place.link(&magic, "inside/magic");
    for name in [
        "outside/file",
        "inside/../outside/file",
        "inside/deeper/../../outside/file",
        "alias/../outside/file",
        "inside/relative",
        "inside/absolute",
        "inside/folder/file",
        "inside/twice",
        "inside/magic",
        &magic,
        "/etc/passwd",
    ] {
        let words = ["not in the folders", "inside", "other"];
        refused(place.allowed.open(place.at(name), false), &words);
    }
    for (from, to) in [("inside/a", "b"), ("inside/b", "a")] {
        place.link(to, from);
    }
    assert_eq!(place.read("inside/a").unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(place.read("inside/no").unwrap_err().kind(), ErrorKind::Io);
    refused(place.read("inside"), &["a directory"]);
}

#[test]
fn a_folder_stays_the_one_that_was_opened() {
    let place = Place::new();
    fs::rename(place.at("inside"), place.at("moved")).unwrap();
    fs::rename(place.at("outside"), place.at("inside")).unwrap();
    assert_eq!(place.read("inside/file").unwrap(), "inside");
    fs::remove_dir_all(place.at("inside")).unwrap();
    assert_eq!(place.read("alias/file").unwrap(), "inside");
}

#[test]
fn whoever_changes_the_links_meanwhile_gets_nothing_outside() {
    let place = Place::new();
    place.link("../outside", "inside/swapped");
    let real = fs::metadata(place.at("outside/file")).unwrap().ino();
    let (one, two) = (place.at("inside/deeper"), place.at("inside/swapped"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, &one, CWD, &two, exchange).unwrap();
            }
        });
        let mut opened = 0;
        for _ in 0..20_000 {
            if let Ok(file) = place.allowed.open(one.join("file"), false) {
                opened += 1;
                assert_ne!(file.metadata().unwrap().ino(), real);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(opened > 0);
    });
}

#[test]
fn a_chain_and_a_data_file_pass_the_gate_and_nothing_outside_is_written() {
    let place = Place::new();
    let allowed = |options: OpenOptions| options.allowed_files(place.allowed.clone());
    for (name, as_data_file) in [("base", false), ("data", true)] {
        let image = place.at("inside/image");
        let target = place.at("inside").join(name);
        image_naming(&image, name, as_data_file);
        fs::write(&target, vec![7; MIB as usize]).unwrap();
        let options = allowed(following().writable(true));
        opened(&image, options).unwrap().close().unwrap();
        // The same name leads outside now.
        fs::rename(&target, place.at("outside").join(name)).unwrap();
        place.link(place.at("outside").join(name), &format!("inside/{name}"));
        for writable in [false, true] {
            let options = allowed(following().writable(writable));
            let words = [name, "named by", "inside/image"];
            refused(opened(&image, options), &words);
        }
        let left = fs::read(place.at("outside").join(name)).unwrap();
        assert!(left.iter().all(|byte| *byte == 7));
        // Who asks for no such thing may open it anywhere.
        opened(&image, following().writable(true)).unwrap();
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn relative_names_and_folders_as_descriptors() {
    let place = Place::new();
    let folder = Folder::of_image(place.at("inside/image")).unwrap();
    assert_eq!(folder.path(), fs::canonicalize(place.at("inside")).unwrap());
    let stat = rustix::fs::fstat(folder.as_fd()).unwrap();
    assert_eq!(stat.st_ino, fs::metadata(place.at("inside")).unwrap().ino());
    // The working directory of the test is the crate's folder.
    let crate_folder = Folder::of_image("Cargo.toml").unwrap();
    let allowed = AllowedFiles::beneath([crate_folder]).unwrap();
    allowed.open("Cargo.toml", false).unwrap();
    allowed.open("src/../Cargo.toml", false).unwrap();
    refused(allowed.open("../block/Cargo.toml", false), &["../block"]);
    assert!(Folder::open("Cargo.toml").is_err());
}
