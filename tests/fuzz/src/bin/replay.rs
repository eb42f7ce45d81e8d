//! Tells what an input is: the image it stands for, and, of an input of `image_write`, what a check finds after each step.
//!
//! `replay TARGET INPUT [IMAGE]` also writes the image to a file of that name.

use libfuzzer_sys as _;

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::program::{self, Session};
use bulkhead_fuzz::{data_file, for_check, hostile, open};
use qcow::Repair;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(target), Some(input)) = (arguments.next(), arguments.next()) else {
        return Err("usage: replay TARGET INPUT [IMAGE]".into());
    };
    let input = std::fs::read(input)?;
    let (steps, image) = match target == "image_write" || target == "image_read" {
        true => program::split(&input),
        false => (Vec::new(), &input[..]),
    };
    let memory = Memory::new(&hostile::image(image));
    data_file::reset();
    if let Some(path) = arguments.next() {
        std::fs::write(path, memory.bytes())?;
    }
    println!("before: {}", checked(&memory));
    println!("{:#?}", open(&memory, for_check())?.info()?);
    if target != "image_write" {
        return Ok(());
    }
    let mut session =
        Session::open(&memory, program::writable(&input), false).ok_or("cannot be opened")?;
    for step in steps {
        println!("{step:?}");
        session = session.change(step).ok_or("cannot be closed")?;
        session.image().flush()?;
        println!("  {}", checked(&memory));
    }
    session.close();
    println!("closed: {}", checked(&memory));
    Ok(())
}

fn checked(memory: &Memory) -> String {
    match open(memory, for_check()).and_then(|image| image.check(Repair::None)) {
        Ok(found) => format!(
            "{} errors, {} corruptions, {} leaks: {:?}",
            found.check_errors, found.corruptions, found.leaks, found.messages
        ),
        Err(error) => error.to_string(),
    }
}
