//! The list of soaks.

use std::process::Command;

use anyhow::{Result, bail};

use crate::fuzz::{self, Run};
use crate::project::Project;
use crate::{demo, run};

/// A long run.
pub(super) struct Soak {
    pub(super) name: &'static str,
    /// How much of it is enough.
    pub(super) amount: u32,
    /// What the amount counts, and of what.
    pub(super) what: &'static str,
    pub(super) plan: fn(&Project, u32) -> Result<Plan>,
}

/// What is run once to prepare it, and what is then measured.
pub(super) struct Plan {
    pub(super) first: Vec<Command>,
    pub(super) soak: Vec<Command>,
}

/// All of them.
pub(super) const SOAKS: [Soak; 7] = [
    Soak {
        name: "fuzz",
        amount: 3600,
        what: "seconds of each fuzz target, by libFuzzer's clock",
        plan: fuzz_targets,
    },
    Soak {
        name: "kills",
        amount: 10_000,
        what: "kill -9 of bulkhead-block under writes, on each kind of image",
        plan: |project, amount| {
            let arguments = [
                "test",
                "--release",
                "-p",
                "bulkhead-block",
                "--test",
                "kills",
            ];
            Ok(tests(project, &arguments, "BLOCK_KILLS", amount))
        },
    },
    Soak {
        name: "guest-kills",
        amount: 1_000,
        what: "kill -9 of bulkhead-block, and of QEMU's backend, under a guest with one and with two vCPUs",
        plan: |project, amount| {
            let arguments = ["test", "-p", "bulkhead-tests", "--test", "guest_kills"];
            let mut plan = tests(project, &arguments, "GUEST_KILLS", amount);
            plan.first.push(demo::build_command(project));
            Ok(plan)
        },
    },
    Soak {
        name: "crash",
        amount: 10_000,
        what: "power cuts in the middle of changes of a qcow2 image",
        plan: |project, amount| {
            let arguments = ["test", "--release", "-p", "qcow", "--test", "crash"];
            Ok(tests(project, &arguments, "QCOW_CRASH_POINTS", amount))
        },
    },
    Soak {
        name: "random",
        amount: 20_000,
        what: "random command lines, image-tool's result beside qemu-img's",
        plan: |project, amount| {
            let arguments = ["test", "--release", "-p", "image-tool", "--test", "random"];
            Ok(tests(project, &arguments, "IMAGE_TOOL_CASES", amount))
        },
    },
    Soak {
        name: "linux",
        amount: 200,
        what: "Linux guests whose disk's backend is killed three times, with one vCPU; a quarter as many with two",
        // Small files: most of the time goes by for what is looked for, not for random numbers and hashes under
        // emulation.
        plan: |project, amount| {
            Ok(linux(
                project,
                amount,
                &["--kills", "3", "--file-kib", "256"],
            ))
        },
    },
    Soak {
        name: "linux-kills",
        amount: 20,
        what: "Linux guests whose disk's backend is killed 20 times, with one vCPU; a quarter as many with two",
        plan: |project, amount| Ok(linux(project, amount, &["--kills", "20"])),
    },
];

fn fuzz_targets(project: &Project, seconds: u32) -> Result<Plan> {
    if let Some(why) = fuzz::missing()? {
        bail!("{why}");
    }
    let run = Run { seconds, seed: 0 };
    let targets = fuzz::targets(project)?;
    let soak = targets.iter().map(|name| {
        let mut command = fuzz::target(project, name, &run);
        command.arg("-print_final_stats=1");
        command
    });
    Ok(Plan {
        first: fuzz::build(project).into(),
        soak: soak.collect(),
    })
}

fn linux(project: &Project, runs: u32, load: &[&str]) -> Plan {
    let scenario = |cpus: &str, runs: u32| {
        let mut command = Command::new(project.program("bulkhead-e2e"));
        command.args(["--times", &runs.to_string()]);
        command.args(["--cpus", cpus]).args(load);
        command.arg("a_disk_survives_the_death");
        command
    };
    Plan {
        first: vec![demo::build_command(project)],
        soak: vec![scenario("1", runs), scenario("2", runs.div_ceil(4))],
    }
}

/// A cargo test whose amount is set by an environment variable.
fn tests(project: &Project, arguments: &[&str], variable: &str, amount: u32) -> Plan {
    let mut command = run::cargo(project, arguments);
    command.env(variable, amount.to_string());
    command.args(["--", "--nocapture"]);
    Plan {
        first: Vec::new(),
        soak: vec![command],
    }
}
