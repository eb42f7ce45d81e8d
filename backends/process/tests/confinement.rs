//! Confinement can't be undone, so each case runs in a process of its own: this very test binary, started again.

#![allow(clippy::unwrap_used)]

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use bulkhead_process::confine::{CapabilitySet, ConfineError, Confinement};

mod alone;
mod rootfs;

use alone::{Case, again};

const CASES: &[Case] = &[
    (
        "open_socket_and_execve_are_refused",
        open_socket_and_execve_are_refused,
    ),
    (
        "a_path_that_is_allowed_opens_and_others_do_not",
        a_path_that_is_allowed_opens_and_others_do_not,
    ),
    (
        "capabilities_are_gone_and_cannot_be_had_again",
        capabilities_are_gone_and_cannot_be_had_again,
    ),
    (
        "only_the_socket_families_and_ioctls_named_are_allowed",
        only_the_socket_families_and_ioctls_named_are_allowed,
    ),
    (
        "an_isolated_process_sees_nothing_of_the_host",
        an_isolated_process_sees_nothing_of_the_host,
    ),
    (
        "a_user_is_isolated_as_root_is",
        a_user_is_isolated_as_root_is,
    ),
    (
        "on_a_host_that_runs_from_its_initramfs_it_is_the_same",
        on_a_host_that_runs_from_its_initramfs_it_is_the_same,
    ),
    (
        "without_descriptors_it_does_not_go_on_less_confined",
        without_descriptors_it_does_not_go_on_less_confined,
    ),
    (
        "where_the_host_allows_no_namespaces_one_line_says_so",
        where_the_host_allows_no_namespaces_one_line_says_so,
    ),
    (
        "what_is_named_is_opened_in_the_first_stage_only",
        what_is_named_is_opened_in_the_first_stage_only,
    ),
    (
        "a_first_stage_opens_what_belongs_to_others_where_that_is_named",
        a_first_stage_opens_what_belongs_to_others_where_that_is_named,
    ),
    (
        "a_user_namespace_gives_no_right_to_files",
        a_user_namespace_gives_no_right_to_files,
    ),
    (
        "signals_to_others_and_foreign_memory_are_refused_by_argument",
        signals_to_others_and_foreign_memory_are_refused_by_argument,
    ),
    (
        "a_thread_gives_up_more_than_its_process",
        a_thread_gives_up_more_than_its_process,
    ),
    (
        "a_datagram_goes_to_no_address",
        a_datagram_goes_to_no_address,
    ),
];

fn main() {
    match std::env::var("BULKHEAD_TEST_CASE").as_deref() {
        Ok("isolated") => isolated(),
        Ok("not_isolated") => not_isolated(),
        Ok("no_right_to_files") => no_right_to_files(),
        _ => alone::main(CASES),
    }
}

fn refused<T>(result: io::Result<T>) -> bool {
    matches!(result, Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
}

fn open_socket_and_execve_are_refused() {
    Confinement::new().enter().unwrap();
    assert!(refused(File::open("/etc/hostname")));
    assert!(refused(TcpListener::bind("127.0.0.1:0")));
    assert!(refused(UnixStream::pair()));
    assert!(refused(Command::new("/bin/true").status()));
    // Threads, allocation and output still work.
    std::thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();
}

fn a_path_that_is_allowed_opens_and_others_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::write(&inside, "x").unwrap();
    Confinement::new()
        .allow(&[libc::SYS_openat, libc::SYS_unlink, libc::SYS_unlinkat])
        .read_path(&inside)
        .enter()
        .unwrap();
    assert!(File::open(&inside).is_ok());
    assert!(refused(File::options().write(true).open(&inside)));
    assert!(refused(File::open("/etc/passwd")));
    // The folder was not among the allowed paths, so the program cannot remove it.
    std::mem::forget(folder);
}

fn capabilities_are_gone_and_cannot_be_had_again() {
    Confinement::new()
        .allow(&[libc::SYS_openat])
        .read_path("/proc/self/status")
        .enter()
        .unwrap();
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    for field in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
}

fn only_the_socket_families_and_ioctls_named_are_allowed() {
    Confinement::new()
        .allow(&[libc::SYS_socketpair, libc::SYS_connect])
        .allow_socket_families(&[libc::AF_UNIX])
        .allow_ioctls(&[libc::FIONREAD])
        .enter()
        .unwrap();
    let (one, _other) = UnixStream::pair().unwrap();
    assert!(rustix::io::ioctl_fionread(&one).is_ok());
    assert!(rustix::io::ioctl_fionbio(&one, true).is_err());
    assert!(UnixStream::connect("/nowhere").is_err_and(|e| e.kind() == io::ErrorKind::NotFound));
    assert!(refused(TcpListener::bind("127.0.0.1:0")));
}

/// `linux/fcntl.h`, where the libc crate has it not.
const F_SETSIG: libc::c_int = 10;

/// Everything that a path leads to, by system calls that are allowed for this.
const PATHS: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_readlink,
    libc::SYS_connect,
    libc::SYS_unlink,
    libc::SYS_rename,
];

/// A host's socket by path, and one by an abstract name; both listen.
fn sockets() -> (tempfile::TempDir, UnixListener, UnixListener) {
    let folder = tempfile::tempdir().unwrap();
    let by_path = UnixListener::bind(folder.path().join("s")).unwrap();
    let name = SocketAddr::from_abstract_name(format!("bulkhead-{}", std::process::id())).unwrap();
    (folder, by_path, UnixListener::bind_addr(&name).unwrap())
}

fn isolated() {
    let (folder, by_path, by_name) = sockets();
    let (path, name) = (by_path.local_addr().unwrap(), by_name.local_addr().unwrap());
    assert!(UnixStream::connect_addr(&path).is_ok());
    assert!(UnixStream::connect_addr(&name).is_ok());
    let networks = || std::fs::read_to_string("/proc/self/net/dev").unwrap();
    assert!(networks().lines().count() > 2);

    Confinement::new()
        .isolate()
        .allow(PATHS)
        .allow_socket_families(&[libc::AF_UNIX])
        .enter()
        .unwrap();

    let missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    assert!(UnixStream::connect_addr(&path).is_err_and(missing));
    assert!(UnixStream::connect_addr(&name).is_err_and(refused));
    for path in ["/etc", "/proc", "/dev/null", "/tmp", "/run"] {
        assert!(std::fs::metadata(path).is_err_and(missing), "{path}");
    }
    assert!(std::fs::write("/new", "x").is_err());
    assert!(std::fs::remove_file(folder.path().join("s")).is_err());
    // What lies in the temporary folder is the parent's to remove.
    std::mem::forget(folder);
    // The runtime goes on.
    std::thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();
}

fn an_isolated_process_sees_nothing_of_the_host() {
    let output = again("isolated").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// As a user of no privilege: by a user namespace.
fn a_user_is_isolated_as_root_is() {
    works_for_a_user("isolated");
}

/// Runs a case as a user of no privilege.
fn works_for_a_user(case: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut user = again(case);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
        let program = folder.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        user = Command::new(&program);
        user.env("BULKHEAD_TEST_CASE", case).uid(65534).gid(65534);
    }
    let output = user
        .env("TMPDIR", folder.path())
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

fn on_a_host_that_runs_from_its_initramfs_it_is_the_same() {
    let test = "on_a_host_that_runs_from_its_initramfs_it_is_the_same";
    let Some(_rootfs) = rootfs::Rootfs::enter(test) else {
        return;
    };
    an_isolated_process_sees_nothing_of_the_host();
    a_user_is_isolated_as_root_is();
}

fn without_descriptors_it_does_not_go_on_less_confined() {
    let none = rustix::process::Rlimit {
        current: Some(3),
        maximum: Some(3),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, none).unwrap();

    let entered = Confinement::new().isolate().read_path("/etc").enter();

    assert!(
        matches!(entered, Err(ConfineError::Namespaces(_))),
        "{entered:?}"
    );
}

/// In a user namespace that may have none below it, without privilege.
fn not_isolated() {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    // SAFETY: there is one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) }.unwrap();
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("{user} {user} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("{group} {group} 1")).unwrap();
    std::fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
    let none = rustix::thread::CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).unwrap();

    Confinement::new().isolate().allow(PATHS).enter().unwrap();

    assert!(refused(File::open("/etc/passwd")));
    assert!(refused(std::fs::read_dir("/")));
    assert!(refused(UnixStream::pair()));
}

fn where_the_host_allows_no_namespaces_one_line_says_so() {
    let output = again("not_isolated").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    let start = "warning: the host does not allow all of the confinement (user namespaces: ";
    assert!(said.starts_with(start), "{said}");
}

fn what_is_named_is_opened_in_the_first_stage_only() {
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(folder.path()).unwrap();
    std::fs::create_dir("images").unwrap();
    std::fs::create_dir("elsewhere").unwrap();
    for file in ["disk", "neighbour", "images/base", "elsewhere/real"] {
        std::fs::write(file, file).unwrap();
    }
    std::os::unix::fs::symlink("elsewhere/real", "link").unwrap();
    let socket = folder.path().join("elsewhere/socket");
    let _listener = UnixListener::bind(&socket).unwrap();

    let first = Confinement::new()
        .isolate()
        .begin(
            Confinement::new()
                .allow(PATHS)
                .allow_socket_families(&[libc::AF_UNIX])
                .read_path("images")
                .read_path("link")
                .read_path("not/there")
                .write_path("disk"),
        )
        .unwrap();

    let disk = File::options().read(true).write(true).open("disk");
    assert!(disk.is_ok(), "{disk:?}");
    assert!(File::open(folder.path().join("disk")).is_ok());
    assert_eq!(
        std::fs::read_to_string("images/base").unwrap(),
        "images/base"
    );
    assert_eq!(std::fs::read_to_string("link").unwrap(), "elsewhere/real");
    let images = std::fs::read_dir("images").unwrap();
    assert_eq!(images.count(), 1);
    assert!(File::options().write(true).open("images/base").is_err());
    assert!(File::create("images/new").is_err());
    assert!(std::fs::remove_file("disk").is_err());
    for hidden in ["neighbour", "not/there", "/etc/passwd", "/proc/self/maps"] {
        let error = File::open(hidden).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{hidden}");
    }
    assert!(UnixStream::connect(&socket).is_err());
    assert!(refused(Command::new("/bin/true").status()));

    first.finish().unwrap();

    for gone in ["disk", "images/base", "link"] {
        assert!(refused(File::open(gone)), "{gone}");
    }
    disk.unwrap().write_all(b"still open").unwrap();
    std::mem::forget(folder);
}

fn signals_to_others_and_foreign_memory_are_refused_by_argument() {
    let (reader, _writer) = io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    Confinement::new().allow_file_mappings().enter().unwrap();
    let fcntl = |command, argument: libc::c_int| {
        // SAFETY: these commands take an integer.
        match unsafe { libc::fcntl(reader.as_raw_fd(), command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            other => Ok(other),
        }
    };
    assert!(fcntl(libc::F_GETFL, 0).is_ok());
    assert!(fcntl(libc::F_SETFL, libc::O_NONBLOCK).is_ok());
    for (command, argument) in [
        (libc::F_SETOWN, 1),
        (F_SETSIG, libc::SIGKILL),
        (libc::F_SETLEASE, libc::F_WRLCK),
        (libc::F_NOTIFY, 1),
        (libc::F_SETFL, libc::O_ASYNC),
        (libc::F_DUPFD, 3),
    ] {
        assert!(refused(fcntl(command, argument)), "{command}");
    }
    let map = |protection| {
        // SAFETY: a mapping of its own, at an address the kernel chooses, that nobody uses.
        let at = unsafe {
            let fd = file.as_raw_fd();
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        match at {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            at => Ok(at),
        }
    };
    let at = map(libc::PROT_READ).unwrap();
    assert!(refused(map(libc::PROT_READ | libc::PROT_EXEC)));
    let advise = |advice| {
        // SAFETY: the page is mapped and nobody uses it.
        match unsafe { libc::madvise(at, 4096, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    advise(libc::MADV_DONTNEED).unwrap();
    for advice in [
        libc::MADV_HWPOISON,
        libc::MADV_SOFT_OFFLINE,
        libc::MADV_MERGEABLE,
    ] {
        assert!(refused(advise(advice)), "{advice}");
    }
    for (name, number, arguments) in [
        ("kill", libc::SYS_kill, [1, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [1, 1, 0]),
        ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [16, 1, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
        ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, [1, 0, 0]),
        (
            "clone(SIGCHLD)",
            libc::SYS_clone,
            [libc::SIGCHLD as usize, 0, 0],
        ),
        (
            "unshare",
            libc::SYS_unshare,
            [libc::CLONE_NEWUSER as usize, 0, 0],
        ),
        ("setns", libc::SYS_setns, [0, 0, 0]),
    ] {
        let [a, b, c] = arguments;
        // SAFETY: each would do nothing but to fail, or to leave this process as it is.
        let result = unsafe { libc::syscall(number, a, b, c) };
        let error = io::Error::last_os_error().raw_os_error();
        assert_eq!((result, error), (-1, Some(libc::EPERM)), "{name}");
    }
}

fn a_thread_gives_up_more_than_its_process() {
    Confinement::new().allow_socket_pairs().enter().unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // A pair of datagram sockets could send to any path.
    assert!(refused(UnixDatagram::pair()));
    let thread = std::thread::spawn(move || {
        Confinement::for_thread().enter_thread().unwrap();
        rustix::io::write(&theirs, b"x").unwrap();
        drop(vec![1u8; 1 << 20]);
        let refused = refused(UnixStream::pair()) && refused(theirs.try_clone());
        let started = std::thread::Builder::new().spawn(|| ()).is_ok();
        (refused, started)
    });
    assert_eq!(thread.join().unwrap(), (true, false));
    ours.read_exact(&mut [0]).unwrap();
    // The others go on as before.
    assert!(UnixStream::pair().is_ok());
    std::thread::spawn(|| ()).join().unwrap();
}

fn a_datagram_goes_to_no_address() {
    let folder = tempfile::tempdir().unwrap();
    let (peer, other) = (folder.path().join("peer"), folder.path().join("other"));
    let peer_socket = UnixDatagram::bind(&peer).unwrap();
    let _other = UnixDatagram::bind(&other).unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(&peer).unwrap();
    Confinement::new().enter().unwrap();
    socket.send(b"x").unwrap();
    assert_eq!(peer_socket.recv(&mut [0; 8]).unwrap(), 1);
    assert!(refused(socket.send_to(b"x", &other)));
    std::mem::forget(folder);
}

fn a_first_stage_opens_what_belongs_to_others_where_that_is_named() {
    if rustix::process::geteuid().as_raw() != 0 {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "of another").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
    let opening = Confinement::new()
        .allow(PATHS)
        .keep_capabilities(CapabilitySet::DAC_OVERRIDE)
        .read_path(&file);
    let first = Confinement::new().isolate().begin(opening).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "of another");
    first.finish().unwrap();
    assert!(refused(File::open(&file)));
    std::mem::forget(folder);
}

fn a_user_namespace_gives_no_right_to_files() {
    works_for_a_user("no_right_to_files");
}

fn no_right_to_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "closed to everybody").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).unwrap();
    let opening = Confinement::new()
        .allow(PATHS)
        .keep_capabilities(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)
        .write_path(folder.path());

    let _first = Confinement::new().isolate().begin(opening).unwrap();

    assert!(refused(File::open(&file)));
    assert!(refused(File::create(folder.path().join("new"))));
    std::mem::forget(folder);
}
