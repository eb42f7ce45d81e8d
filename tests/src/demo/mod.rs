//! The demo: one guest on its processes, from an empty folder to an empty host, each step observed.

mod images;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::exits::Exit;
use crate::guest_command::{GuestCommand, KernelImage};
use crate::guest_run::{End, GuestRun, Word};
use crate::host_state::{self, HostState};
use crate::web::WebServer;
use crate::workplace::{Workplace, scratch_folder};
use crate::{guest_linux, hash};
use images::Images;

const NEW_MIB: usize = 64;
const PAGE_SIZE: usize = 300_000;
const TIME_LIMIT: Duration = Duration::from_secs(400);

/// The programs one guest runs on, besides `bulkhead` itself.
const PROGRAMS: [&str; 4] = [
    "bulkhead-net-helper",
    "bulkhead-net",
    "bulkhead-block",
    "bulkhead-vmm",
];

/// What may be different from one demo to the next.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Number of vCPUs.
    pub cpus: u32,
    /// The kernel image.
    pub kernel: KernelImage,
}

/// Runs it on this host, whose KVM must be able to run Linux. `ok` gets each thing that was observed.
pub fn run(workplace: &Workplace, options: Options, ok: &mut dyn FnMut(&str)) -> Result<()> {
    let scratch = scratch_folder(workplace)?;
    let folder = scratch.path();
    let images = Images::create(workplace, folder)?;
    ok("base.qcow2 has an ext4 file system with a known file; overlay.qcow2 is on it");
    let base_hash = hash::of_file(&images.base())?;

    let before = HostState::take()?;
    let page = hash::pseudo_random(PAGE_SIZE, 2);
    let page_hash = hash::of(&page);
    let web = WebServer::start(page)?;
    let with_web = HostState::take()?;
    let settings = [
        ("KNOWN_HASH", images.known_hash.as_str()),
        ("CPUS", &options.cpus.to_string()),
        ("NEW_MIB", &NEW_MIB.to_string()),
        ("URL", &web.url()),
        ("PAGE_HASH", &page_hash),
    ];
    let initramfs = folder.join("guest.cpio");
    guest_linux::build(
        &workplace.kernel()?,
        guest_linux::DEMO_SCRIPT,
        &settings,
        &initramfs,
    )?;

    let command = command(workplace, options, &initramfs, &images.overlay())?;
    let mut run = GuestRun::start(command, TIME_LIMIT)?;
    let new_hash = follow(&mut run, ok)?;
    let end = run.wait()?;

    ended_well(&end, ok)?;
    let client = web.client()?;
    ensure!(
        client == web.host_address(),
        "the page was asked for from {client}, not through the NAT"
    );
    ok(&format!(
        "the web server saw the request come from {client}, the host's own address"
    ));
    HostState::take()?.same_as(&with_web)?;
    drop(web);
    HostState::take()?.same_as(&before)?;
    ok("no tap, bridge, nftables table, dnsmasq or socket of the run remains");
    check_images(&images, &base_hash, &new_hash, ok)
}

/// `bulkhead run` as a user types it.
fn command(
    workplace: &Workplace,
    options: Options,
    initramfs: &Path,
    overlay: &Path,
) -> Result<Command> {
    let guest = GuestCommand {
        cpus: options.cpus,
        kernel: options.kernel,
        disk: Some(overlay.display().to_string()),
        net: true,
        ..GuestCommand::new("demo", initramfs)
    };
    guest.command(workplace)
}

/// Passes on what the guest observes, looks at the processes while it runs, and returns the hash of its new file.
fn follow(run: &mut GuestRun, ok: &mut dyn FnMut(&str)) -> Result<String> {
    let (mut new_hash, mut done, mut seen) = (None, false, false);
    while let Some(word) = run.next_word()? {
        if !seen {
            running()?;
            ok(&format!("{} run", PROGRAMS.join(", ")));
            seen = true;
        }
        match word {
            Word::Ok(text) => ok(&format!("guest: {text}")),
            Word::Value(name, value) if name == "new" => new_hash = Some(value),
            Word::Said(text) if text == "done" => done = true,
            Word::Said(text) if text.starts_with("report: ") => ok(&format!("guest: {text}")),
            Word::Value(..) | Word::Said(_) => {}
        }
    }
    ensure!(done, "the guest did not get to its end; {}", run.story());
    new_hash.context("the guest did not print the hash of its new file")
}

/// Each program of a guest runs once.
fn running() -> Result<()> {
    for program in PROGRAMS {
        let count = host_state::running(program)?.len();
        ensure!(count == 1, "{program} runs {count} times");
    }
    Ok(())
}

/// `bulkhead run` and every process it started have ended with status 0 by themselves.
fn ended_well(end: &End, ok: &mut dyn FnMut(&str)) -> Result<()> {
    let said = end.errors.join("\n  ");
    ensure!(
        end.status.success(),
        "bulkhead run: {}; it said:\n  {said}",
        end.status
    );
    for program in PROGRAMS {
        let is_it = |exit: &&Exit| exit.program.file_name().is_some_and(|name| name == program);
        let exits: Vec<&Exit> = end.exits.iter().filter(is_it).collect();
        let ended_well = !exits.is_empty() && exits.iter().all(|exit| exit.status == 0);
        ensure!(
            ended_well,
            "{program} ended as {exits:?}; bulkhead said:\n  {said}"
        );
        // The helper has a second process, which keeps dnsmasq; `bulkhead` knows the first.
        let reported = |pid: u32| format!("(process {pid}) ended by itself");
        let by_itself = |line: &String| exits.iter().any(|exit| line.contains(&reported(exit.pid)));
        ensure!(
            end.errors.iter().any(by_itself),
            "{program} had to be told to end; bulkhead said:\n  {said}"
        );
        ok(&format!("{program} has ended by itself with status 0"));
    }
    ok("bulkhead run has ended with status 0");
    Ok(())
}

fn check_images(
    images: &Images,
    base_hash: &str,
    new_hash: &str,
    ok: &mut dyn FnMut(&str),
) -> Result<()> {
    images.check()?;
    ok("the overlay passes image-tool check and qemu-img check");
    ensure!(
        hash::of_file(&images.base())? == base_hash,
        "the base image has changed"
    );
    ok("the base image is byte-identical to before");
    let new = images.read("/new")?;
    ensure!(
        new.len() == NEW_MIB << 20,
        "the new file has {} bytes",
        new.len()
    );
    ensure!(
        hash::of(&new) == new_hash,
        "the new file read out of the image has another hash than the guest printed"
    );
    let noted = images.read("/new.sha256")?;
    ensure!(
        noted.trim_ascii() == new_hash.as_bytes(),
        "the hash the guest has written beside its file is another"
    );
    ok(&format!(
        "the new file of {NEW_MIB} MiB, read out of the image without the guest, has its hash"
    ));
    Ok(())
}
