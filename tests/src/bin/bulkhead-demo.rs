//! The demo: a Linux guest on Bulkhead's processes, every step observed. Directly where KVM can run Linux, on the nested bench otherwise.

use std::process::ExitCode;

use anyhow::{Result, bail};
use bulkhead_tests::demo::{self, Options};
use bulkhead_tests::guest_command::KernelImage;
use bulkhead_tests::nested::OuterHost;
use bulkhead_tests::probe::{Verdict, probe};
use bulkhead_tests::workplace::{Workplace, in_outer_host};

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
    let verdict = probe()?;
    println!("{verdict}");
    match verdict {
        Verdict::CanRunLinux => {
            let options = Options {
                cpus: 1,
                kernel: KernelImage::BzImage,
            };
            demo::run(&workplace, options, &mut |observed| {
                println!("ok {observed}")
            })?;
            Ok(0)
        }
        Verdict::CannotRunLinux(_) if in_outer_host() => {
            bail!("the outer host's KVM cannot run Linux")
        }
        Verdict::CannotRunLinux(_) => {
            println!(
                "so the very same runs on the nested bench: Debian's kernel under QEMU's emulation, with a complete KVM"
            );
            OuterHost::default().run(&workplace, &["bulkhead-demo".to_owned()])
        }
    }
}
