//! What the store promises, in folders of the tests' own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

/// A store in a folder that is removed in the end.
struct Scratch {
    folder: tempfile::TempDir,
    store: Store,
}

impl Scratch {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store {
            folder: folder.path().join("a/guests"),
            is_system: true,
        };
        Self { folder, store }
    }

    fn define(&self, text: &str) -> anyhow::Result<Definition> {
        let (text, definition) =
            Text::parse(text.as_bytes()).map_err(|wrong| anyhow!("{wrong}"))?;
        self.store.change()?.define(text, definition, None)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.store.path(name).unwrap()
    }

    fn put(&self, file: &str, text: &str) -> PathBuf {
        let path = self.store.folder.join(file);
        fs::write(&path, text).unwrap();
        path
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn text(name: &str, more: &str) -> String {
    format!("# ours\nname = '{name}'\nkernel = '/k'\n{more}")
}

fn message(result: anyhow::Result<impl Sized>) -> String {
    match result {
        Ok(_) => panic!("it succeeds"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn a_store_that_is_not_there_is_empty() {
    let scratch = Scratch::new();
    assert!(scratch.store.names().unwrap().is_empty());
    assert!(scratch.store.load("g").unwrap().is_none());
    assert!(!scratch.folder().join("a").exists());
}

#[test]
fn a_defined_guest_has_a_uuid_and_addresses_in_its_file() {
    let scratch = Scratch::new();
    let nets = "[[nets]]\nnetwork = 'a'\n[[nets]]\nnetwork = 'a'\n";
    let defined = scratch.define(&text("g", nets)).unwrap();

    assert_eq!(scratch.store.load("g").unwrap().as_ref(), Some(&defined));
    assert_eq!(defined.uuid.unwrap().get_version_num(), 4);
    let macs: Vec<_> = defined.nets.iter().map(|net| net.mac.unwrap()).collect();
    assert_ne!(macs[0], macs[1]);
    let file = fs::read_to_string(scratch.file("g")).unwrap();
    assert!(file.starts_with("# ours\nname = 'g'\nuuid = \""), "{file}");
    let mode = fs::metadata(scratch.file("g"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(
        scratch.store.by_uuid(defined.uuid()).unwrap(),
        Some(defined)
    );
}

#[test]
fn a_guest_that_is_defined_again_keeps_what_was_made() {
    let scratch = Scratch::new();
    let net = "[[nets]]\nnetwork = 'a'\n";
    let first = scratch.define(&text("g", net)).unwrap();
    let again = scratch
        .define(&text("g", &format!("cpus = 2\n{net}")))
        .unwrap();
    assert_eq!((again.uuid, &again.nets), (first.uuid, &first.nets));
    assert_eq!(again.cpus, 2);

    let other = scratch
        .define(&text("g", "[[nets]]\nnetwork = 'b'\n"))
        .unwrap();
    assert_ne!(other.nets[0].mac, first.nets[0].mac);

    let uuid = "uuid = '00000000-0000-4000-8000-000000000001'\n";
    let error = message(scratch.define(&text("g", uuid)));
    let now = first.uuid();
    assert_eq!(error, format!("domain 'g' already exists with uuid {now}"));
}

#[test]
fn a_guest_that_runs_keeps_what_it_has_when_it_is_defined() {
    let scratch = Scratch::new();
    let net = "[[nets]]\nnetwork = 'a'\n";
    let (text, given) = Text::parse(text("g", net).as_bytes()).unwrap();
    let running = given.clone();

    let changes = scratch.store.change().unwrap();
    let defined = changes.define(text, given, Some(running.clone())).unwrap();

    assert_eq!(defined.uuid, Some(running.uuid()));
    assert!(defined.macs().eq(running.macs()));
    assert!(defined.nets[0].mac.is_some());
}

#[test]
fn what_is_anothers_is_refused() {
    let scratch = Scratch::new();
    let uuid = "uuid = '00000000-0000-4000-8000-000000000001'\n";
    let net = "[[nets]]\nnetwork = 'a'\nmac = '52:54:00:00:00:01'\n";
    scratch
        .define(&text("one", &format!("{uuid}{net}")))
        .unwrap();

    let error = message(scratch.define(&text("two", uuid)));
    assert!(
        error.starts_with("domain 'one' is already defined with uuid 0000"),
        "{error}"
    );
    let error = message(scratch.define(&text("two", net)));
    assert!(
        error.starts_with("domain 'one' already has the MAC address 52:54:00:00:00:01"),
        "{error}"
    );
    assert_eq!(scratch.store.names().unwrap(), ["one"]);

    // A copy that was made by hand.
    scratch.put("copy.toml", &text("copy", &format!("{uuid}{net}")));
    let copy = scratch.store.load("copy").unwrap().unwrap();
    assert!(scratch.store.check_unique(&copy, []).is_err());
}

#[test]
fn a_damaged_file_is_named_and_hides_no_other() {
    let scratch = Scratch::new();
    scratch.define(&text("good", "")).unwrap();
    let put = |file: &str, text: &str| scratch.put(file, text);
    put("bad.toml", "name = 'bad'\nkernel = '/k'\nmemry = '1G'\n");
    put("binary.toml", "\u{0}\u{1}");
    put("empty.toml", "");
    put("other.toml", &text("someone", ""));
    put("large.toml", &"#".repeat((256 << 10) + 1));
    put("not a name.toml", &text("x", ""));
    put("README", "no definition");
    put(".hidden.toml", "an editor's");
    fs::create_dir(scratch.store.folder.join("folder.toml")).unwrap();
    std::os::unix::fs::symlink("/nowhere", scratch.store.folder.join("link.toml")).unwrap();
    let fifo = scratch.store.folder.join("fifo.toml");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();

    let entries = scratch.store.all().unwrap();

    let bad: Vec<_> = entries
        .into_iter()
        .filter_map(|entry| Some((entry.name, entry.definition.err()?)))
        .map(|(name, error)| (name, format!("{error:#}")))
        .collect();
    for (name, says) in [
        (
            "bad",
            "bad.toml: line 3, column 1: unknown key 'memry': did you mean 'memory'?",
        ),
        ("binary", "binary.toml: line 1, column 3: "),
        (
            "empty",
            "empty.toml: line 1, column 1: the key 'name' is missing",
        ),
        ("fifo", "fifo.toml is not a file"),
        ("folder", "folder.toml is not a file"),
        (
            "large",
            "large.toml is larger than a definition can be, 256 KiB",
        ),
        ("link", "link.toml leads nowhere: remove it"),
        ("not a name", "not a name.toml: 'not a name' is no name"),
        ("other", "other.toml: the guest's name in it is 'someone'"),
    ] {
        let (_, error) = bad.iter().find(|(bad, _)| bad == name).unwrap();
        assert!(error.contains(&format!("/{says}")), "{error}");
    }
    assert_eq!(bad.len(), 9, "{bad:?}");
    assert!(scratch.store.load("good").unwrap().is_some());
    // It is mended by defining the guest again.
    scratch.define(&text("bad", "")).unwrap();
    // What is no file is not replaced by one.
    for name in ["folder", "link", "fifo"] {
        assert!(scratch.define(&text(name, "")).is_err(), "{name}");
    }
}

#[test]
fn a_change_keeps_the_mode_and_the_comments_of_a_file() {
    let scratch = Scratch::new();
    scratch.define(&text("g", "")).unwrap();
    fs::set_permissions(scratch.file("g"), Permissions::from_mode(0o640)).unwrap();

    let changes = scratch.store.change().unwrap();
    changes
        .update("g", |text| text.set_autostart(true))
        .unwrap();

    assert!(scratch.store.load("g").unwrap().unwrap().autostart);
    let mode = fs::metadata(scratch.file("g"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    let file = fs::read_to_string(scratch.file("g")).unwrap();
    assert!(file.starts_with("# ours\n"), "{file}");
}

#[test]
fn a_definition_that_is_a_link_is_read_but_not_replaced() {
    let scratch = Scratch::new();
    scratch.define(&text("g", "")).unwrap();
    let elsewhere = scratch.folder().join("g.toml");
    fs::rename(scratch.file("g"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, scratch.file("g")).unwrap();

    assert!(scratch.store.load("g").unwrap().is_some());
    let changes = scratch.store.change().unwrap();
    let error = message(changes.update("g", |text| text.set_autostart(true)));
    assert!(error.contains("is a link: change the file"), "{error}");
    changes.remove("g").unwrap();
    assert!(elsewhere.exists());
}

#[test]
fn a_renamed_guest_keeps_its_uuid_and_addresses() {
    let scratch = Scratch::new();
    scratch.define(&text("taken", "")).unwrap();
    // Made by hand: what depends on the name must not change with it.
    let old = scratch.put("g.toml", &text("g", "[[nets]]\nnetwork = 'a'\n"));
    let before = scratch.store.load("g").unwrap().unwrap();
    let changes = scratch.store.change().unwrap();

    changes.rename("g", "h").unwrap();

    let after = scratch.store.load("h").unwrap().unwrap();
    assert_eq!(after.uuid(), before.uuid());
    assert!(after.macs().eq(before.macs()));
    assert!(!old.exists());
    for (new, says) in [
        ("h", "Can't rename domain to itself"),
        ("taken", "domain with name 'taken' already exists"),
        ("../x", "'../x' is no name"),
    ] {
        let error = message(changes.rename("h", new));
        assert!(error.starts_with(says), "{error}");
    }
    assert!(message(changes.rename("nobody", "x")).starts_with("failed to get domain 'nobody'"));
}

#[test]
fn what_a_killed_command_left_is_no_definition_and_in_nobodys_way() {
    let scratch = Scratch::new();
    scratch.define(&text("g", "")).unwrap();
    scratch.put(".new", "half of it");
    assert_eq!(scratch.store.names().unwrap(), ["g"]);
    scratch.define(&text("h", "")).unwrap();
    assert!(!scratch.store.folder.join(".new").exists());
}

#[test]
fn made_addresses_are_nobody_elses() {
    let mut taken = unique::Taken::default();
    let mut guest = Definition::new("g".into(), "/k".into());
    guest.nets = vec!["a".parse().unwrap(); 200];
    for index in 0..guest.nets.len() {
        guest.nets[index].mac = Some(taken.free_mac(&guest).unwrap());
        taken.add(&guest);
    }
    let macs: std::collections::HashSet<_> = guest.macs().collect();
    assert_eq!(macs.len(), 200);
}
