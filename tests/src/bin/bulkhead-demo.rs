//! The demo: a Linux guest on Bulkhead's processes, every step observed. Directly where KVM can run Linux, on the
//! nested bench otherwise.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::process::ExitCode;

use anyhow::Result;
use bulkhead_tests::demo::{self, Options};
use bulkhead_tests::guest_command::KernelImage;
use bulkhead_tests::nested::{self, OuterHost};
use bulkhead_tests::workplace::Workplace;

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8> {
    let workplace = Workplace::find()?;
    if let Some(why) = nested::needed()? {
        println!("{why}:");
        println!(
            "the very same runs on the nested bench, Debian's kernel under QEMU's emulation with a complete KVM"
        );
        return OuterHost::default().run(&workplace, &["bulkhead-demo".to_owned()]);
    }
    println!("KVM here can run Linux");
    let options = Options {
        cpus: 1,
        kernel: KernelImage::BzImage,
    };
    demo::run(&workplace, options, &mut |observed| {
        println!("ok {observed}")
    })?;
    Ok(0)
}
