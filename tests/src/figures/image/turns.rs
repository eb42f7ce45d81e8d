//! Two programs in turn, and what each took: time, processor time, memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::figures::{Aim, Measurement, median};

/// What the aims allow a program to have in memory at once.
const MEMORY: f64 = 64.0;

/// Rounds that count. One before them warms the caches.
const ROUNDS: usize = 7;

/// As much memory as a program may need in the page cache, in MiB.
const TOUCHED: usize = 2048;

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    wall: f64,
    processor: f64,
    /// At most at one time, in MiB.
    memory: f64,
    /// The length of what it wrote, in MiB.
    written: f64,
}

/// A program and its arguments.
type Contestant<'a> = (&'a Path, Vec<String>);

/// A comparison.
pub(super) struct Turns<'a> {
    folder: &'a Path,
    ours: Contestant<'a>,
    theirs: Contestant<'a>,
    /// Files that are not there when a program starts.
    written: Vec<&'a str>,
    /// Files that are as they were when a program starts.
    restored: Vec<&'a str>,
    /// How large what is written may be, times what the other program wrote.
    size_aim: Option<f64>,
}

impl<'a> Turns<'a> {
    pub(super) fn new(
        folder: &'a Path,
        (ours, our_arguments): (&'a Path, &str),
        (theirs, their_arguments): (&'a Path, &str),
    ) -> Self {
        let split = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        Self {
            folder,
            ours: (ours, split(our_arguments)),
            theirs: (theirs, split(their_arguments)),
            written: Vec::new(),
            restored: Vec::new(),
            size_aim: None,
        }
    }

    /// The programs create this file.
    pub(super) fn writes(mut self, file: &'a str) -> Self {
        self.written.push(file);
        self
    }

    /// The programs change this file.
    pub(super) fn restores(mut self, file: &'a str) -> Self {
        self.restored.push(file);
        self
    }

    /// What our program wrote may be so many times as large as what the other did.
    pub(super) fn size_at_most(mut self, aim: f64) -> Self {
        self.size_aim = Some(aim);
        self
    }

    /// Our time is to be at most so much of the other's.
    pub(super) fn measure(self, name: &str, aim: f64) -> Result<Vec<Measurement>> {
        self.run(name, Aim::Ratio(aim))
    }

    /// Our time is to be at most so many seconds.
    pub(super) fn measure_at_most(self, name: &str, seconds: f64) -> Result<Vec<Measurement>> {
        self.run(name, Aim::AtMost(seconds))
    }

    fn run(self, name: &str, aim: Aim) -> Result<Vec<Measurement>> {
        for file in &self.restored {
            std::fs::copy(self.folder.join(file), self.kept(file)).context("copy")?;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            for ((program, arguments), all) in
                [(&self.ours, &mut ours), (&self.theirs, &mut theirs)]
            {
                self.prepare()?;
                let mut took = run(Command::new(program)
                    .args(arguments)
                    .current_dir(self.folder))?;
                took.written = self.size_of_written()?;
                if round > 0 {
                    all.push(took);
                }
            }
        }
        for file in &self.restored {
            std::fs::rename(self.kept(file), self.folder.join(file)).context("rename")?;
        }
        let middle = |all: &[Took], part: fn(&Took) -> f64| median(all.iter().map(part).collect());
        let row = |what: &str, unit: &str, part: fn(&Took) -> f64| {
            Measurement::new(format!("{name}: {what}"), middle(&ours, part), unit)
                .against("qemu-img", middle(&theirs, part))
        };
        let mut rows = vec![
            row("time", "s", |took| took.wall).aiming(aim),
            row("processor time", "s", |took| took.processor),
            row("memory", "MiB", |took| took.memory).aiming(Aim::AtMost(MEMORY)),
        ];
        if let Some(aim) = self.size_aim {
            rows.push(row("size", "MiB", |took| took.written).aiming(Aim::Ratio(aim)));
        }
        self.remove_written()?;
        Ok(rows)
    }

    fn size_of_written(&self) -> Result<f64> {
        self.written.iter().try_fold(0.0, |sum, file| {
            let metadata = self.folder.join(file).metadata().context("written file")?;
            Ok(sum + metadata.len() as f64 / f64::from(1 << 20))
        })
    }

    fn remove_written(&self) -> Result<()> {
        for file in self.written.iter().map(|file| self.folder.join(file)) {
            if file.exists() {
                std::fs::remove_file(&file).with_context(|| file.display().to_string())?;
            }
        }
        Ok(())
    }

    fn kept(&self, file: &str) -> PathBuf {
        self.folder.join(format!("{file}.kept"))
    }

    /// Everything as it was; and on the disk, so that nothing is written out while a program is measured.
    fn prepare(&self) -> Result<()> {
        self.remove_written()?;
        for file in &self.restored {
            let target = self.folder.join(file);
            std::fs::remove_file(&target).context("remove")?;
            std::fs::copy(self.kept(file), target).context("copy")?;
        }
        rustix::fs::sync();
        self.touch_memory()
    }

    /// Takes memory for page cache and gives it back. A virtual machine's host gives memory when it is first touched,
    /// which may take longer than all that is measured; whoever comes first would pay for it.
    fn touch_memory(&self) -> Result<()> {
        let path = self.folder.join("touched");
        let mut file = std::fs::File::create(&path).context("touched")?;
        let piece = vec![1; 1 << 20];
        for _ in 0..TOUCHED {
            file.write_all(&piece).context("touched")?;
        }
        std::fs::remove_file(&path).context("touched")
    }
}

/// Runs a command to its end.
pub(super) fn run(command: &mut Command) -> Result<Took> {
    let start = Instant::now();
    let child = command
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let (status, usage) = wait(&child).with_context(|| format!("{command:?}"))?;
    let wall = start.elapsed().as_secs_f64();
    if status != 0 {
        bail!("{command:?}: wait status {status:#x}");
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Took {
        wall,
        processor: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        memory: usage.ru_maxrss as f64 / 1024.0,
        written: 0.0,
    })
}

/// Waits for the child, and returns what it used, which neither the standard library nor rustix reports.
fn wait(child: &Child) -> std::io::Result<(i32, libc::rusage)> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to memory of ours of the right types; the process is a child that nobody else
        // waits for.
        let waited = unsafe {
            libc::wait4(
                child.id() as libc::pid_t,
                &mut status,
                0,
                usage.as_mut_ptr(),
            )
        };
        if waited >= 0 {
            // SAFETY: zeroes are a valid value of this plain structure, and the kernel has filled it in.
            return Ok((status, unsafe { usage.assume_init() }));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
