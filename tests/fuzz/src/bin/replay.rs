//! Tells what an input is: the image it stands for, and, of a target that changes it, what a check finds after each step.
//!
//! `replay TARGET INPUT [IMAGE]` also writes the image to a file `IMAGE.0`, and what it is after each step to the next ones.

#![allow(clippy::disallowed_macros, reason = "it prints what it replays")]

use libfuzzer_sys as _;

use std::path::{Path, PathBuf};

use bulkhead_fuzz::for_check;
use bulkhead_fuzz::host::Host;
use bulkhead_fuzz::input::Input;
use bulkhead_fuzz::mended::repair;
use bulkhead_fuzz::program::{Session, Step};
use qcow::Repair;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(target), Some(input)) = (arguments.next(), arguments.next()) else {
        return Err("usage: replay TARGET INPUT [IMAGE]".into());
    };
    let bytes = std::fs::read(input)?;
    if target == "guest_definition" {
        return Err("the input is the definition itself".into());
    }
    let input = Input::of(&bytes);
    let host = Host::new(&input);
    let path = arguments.next().map(PathBuf::from);
    keep(&host, path.as_deref(), 0)?;
    println!(
        "{} layers below, steps {:?}",
        input.below.len(),
        input.steps
    );
    println!("before: {}", checked(&host));
    println!("{:#?}", host.open_alone(for_check())?.info()?);
    if target == "image_write" {
        return change(&host, &input, &input.steps, path.as_deref());
    }
    if target == "image_repair" {
        let (_, steps) = input.way();
        for what in [Repair::Leaks, Repair::All, Repair::All] {
            println!("{what:?}: {:#?}", repair(&host, what));
            println!("  {}", checked(&host));
        }
        return change(&host, &input, steps, path.as_deref());
    }
    Ok(())
}

fn change(
    host: &Host,
    input: &Input<'_>,
    steps: &[Step],
    path: Option<&Path>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut session = Session::open(host, input.writable(), false).ok_or("cannot be opened")?;
    for (number, step) in (1..).zip(steps) {
        println!("{number}: {step:?}");
        session = session.change(*step).ok_or("cannot be closed")?;
        session.image().flush()?;
        println!("  {}", checked(host));
        keep(host, path, number)?;
    }
    session.close();
    println!("closed: {}", checked(host));
    Ok(())
}

fn keep(host: &Host, path: Option<&Path>, number: usize) -> std::io::Result<()> {
    match path {
        Some(path) => std::fs::write(
            path.with_added_extension(number.to_string()),
            host.file.bytes(),
        ),
        None => Ok(()),
    }
}

fn checked(host: &Host) -> String {
    let found = host
        .open_alone(for_check())
        .and_then(|image| image.check(Repair::None));
    match found {
        Ok(found) => format!(
            "{} errors, {} corruptions, {} leaks: {:?}",
            found.check_errors, found.corruptions, found.leaks, found.messages
        ),
        Err(error) => error.to_string(),
    }
}
