//! The list of verbs. Each verb is a file or a folder here, and two lines below.

mod affected;
mod autostart;
pub(crate) mod completion;
mod console;
mod cpu_stats;
mod create;
mod define;
mod desc;
mod destroy;
mod doctor;
mod domblklist;
mod domdisplay;
mod domid;
mod domifaddr;
mod domiflist;
mod domifstat;
mod dominfo;
mod dommemstat;
mod domname;
mod domrename;
mod domstate;
mod domstats;
mod domuuid;
mod dumptoml;
mod edit;
mod event;
mod examples;
pub(crate) mod help;
mod hostname;
pub(crate) mod interactive;
mod list;
mod logs;
mod manual;
mod metadata;
mod nodeinfo;
mod power;
mod qemu_monitor_command;
mod run;
mod schema;
mod start;
mod undefine;
mod vcpucount;
mod vcpuinfo;
mod vcpupin;
mod version;

use std::process::ExitCode;

use crate::output::Output;

/// The verbs of `bulkhead`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    Doctor(doctor::Args),
    Cd(interactive::Cd),
    Completion(completion::Args),
    Echo(interactive::Echo),
    Exit(interactive::Quit),
    Help(help::Args),
    Hostname(hostname::Args),
    #[command(hide = true)]
    Manual(manual::Args),
    Nodeinfo(nodeinfo::Args),
    Pwd(interactive::Pwd),
    Quit(interactive::Quit),
    /// Run a guest in the foreground, with its console on this terminal, or in the background
    Run(Box<run::Args>),
    /// Start a defined guest
    Start(start::Args),
    /// List guests
    List(list::Args),
    /// Connect this terminal to the console of a guest
    Console(console::Args),
    /// Print the messages of a guest's processes and its console's output
    Logs(logs::Args),
    /// Ask a guest to shut down, by its power button
    Shutdown(power::ModeArgs),
    /// Ask a guest to shut down, and start it again
    Reboot(power::ModeArgs),
    /// Reset a guest at once, as by its reset button
    Reset(power::Args),
    /// End a guest at once
    Destroy(destroy::Args),
    /// Stop the CPUs of a guest
    Suspend(power::Args),
    /// Let a suspended guest run on
    Resume(power::Args),
    /// Print the main facts about a guest
    Dominfo(dominfo::Args),
    /// Print the state of a guest
    Domstate(domstate::Args),
    /// Print the id of a guest
    Domid(domid::Args),
    /// Start a guest from a TOML file, without defining it
    Create(create::Args),
    /// List the disks of a guest
    Domblklist(domblklist::Args),
    /// List the network cards of a guest
    Domiflist(domiflist::Args),
    /// Print what went through a network card of a guest
    Domifstat(domifstat::Args),
    /// Print the addresses that a guest has by DHCP
    Domifaddr(domifaddr::Args),
    /// Print how much memory a guest has and takes
    Dommemstat(dommemstat::Args),
    /// Print figures of guests
    Domstats(domstats::Args),
    /// Wait for changes of guests' states
    Event(event::Args),
    /// Say that a guest has no graphical display
    Domdisplay(domdisplay::Args),
    /// Say what to use in place of a command of QEMU's monitor
    QemuMonitorCommand(qemu_monitor_command::Args),
    /// Print facts about the virtual CPUs of a guest
    Vcpuinfo(vcpuinfo::Args),
    /// Print the number of virtual CPUs of a guest
    Vcpucount(vcpucount::Args),
    /// Print or set which CPUs of the host virtual CPUs run on
    Vcpupin(vcpupin::Args),
    /// Print the processor time that a guest has used
    CpuStats(cpu_stats::Args),
    /// Define a guest by a TOML file, without starting it
    Define(define::Args),
    /// Remove the definition of a guest
    Undefine(undefine::Args),
    /// Change the definition of a guest in an editor
    Edit(edit::Args),
    /// Print the definition of a guest
    Dumptoml(dumptoml::Args),
    /// Have a guest started with the host
    Autostart(autostart::Args),
    /// Print or set the description of a guest
    Desc(desc::Args),
    /// Print or set the title of a guest
    Title(desc::TitleArgs),
    /// Print or set a text of another program about a guest
    Metadata(metadata::Args),
    /// Give a guest another name
    Domrename(domrename::Args),
    /// Print the UUID of a guest
    Domuuid(domuuid::Args),
    /// Print the name of a guest
    Domname(domname::Args),
    /// Print the JSON Schema of a definition
    Schema(schema::Args),
    Version(version::Args),
}

impl Verb {
    /// Runs the verb, which prints by `output`.
    pub(crate) fn run(self, output: Output) -> anyhow::Result<ExitCode> {
        let status = match self {
            // What these print is not virsh's.
            Self::Run(args) => return run::run(&args, output),
            Self::Doctor(args) => return doctor::run(args, output),
            Self::Help(args) => return help::run(&args, output),
            Self::Logs(args) => return logs::run(&args),
            Self::Completion(args) => return completion::run(args),
            Self::Manual(args) => return manual::run(&args),
            Self::Cd(_) => return interactive::outside("cd"),
            Self::Echo(args) => return interactive::echo(&args),
            Self::Exit(_) | Self::Quit(_) => return Ok(ExitCode::SUCCESS),
            Self::Schema(args) => return schema::run(&args, output),
            Self::Start(args) => start::run(&args, output),
            Self::List(args) => list::run(&args, output),
            Self::Console(args) => console::run(&args, output),
            Self::Shutdown(args) => power::shutdown(&args, output),
            Self::Reboot(args) => power::reboot(&args, output),
            Self::Reset(args) => power::reset(&args, output),
            Self::Destroy(args) => destroy::run(&args, output),
            Self::Suspend(args) => power::suspend(&args, output),
            Self::Resume(args) => power::resume(&args, output),
            Self::Dominfo(args) => dominfo::run(&args, output),
            Self::Domstate(args) => domstate::run(&args, output),
            Self::Domid(args) => domid::run(&args, output),
            Self::Create(args) => create::run(&args, output),
            Self::Domblklist(args) => domblklist::run(&args, output),
            Self::Domiflist(args) => domiflist::run(&args, output),
            Self::Domifstat(args) => domifstat::run(&args, output),
            Self::Domifaddr(args) => domifaddr::run(&args, output),
            Self::Dommemstat(args) => dommemstat::run(&args, output),
            Self::Domstats(args) => domstats::run(&args, output),
            Self::Event(args) => event::run(&args, output),
            Self::Domdisplay(args) => domdisplay::run(&args, output),
            Self::QemuMonitorCommand(args) => qemu_monitor_command::run(&args, output),
            Self::Vcpuinfo(args) => vcpuinfo::run(&args, output),
            Self::Vcpucount(args) => vcpucount::run(&args, output),
            Self::Vcpupin(args) => vcpupin::run(&args, output),
            Self::CpuStats(args) => cpu_stats::run(&args, output),
            Self::Define(args) => define::run(&args, output),
            Self::Undefine(args) => undefine::run(&args, output),
            Self::Edit(args) => edit::run(&args, output),
            Self::Dumptoml(args) => dumptoml::run(&args, output),
            Self::Autostart(args) => autostart::run(&args, output),
            Self::Desc(args) => desc::run(&args, output),
            Self::Title(args) => desc::title(&args, output),
            Self::Metadata(args) => metadata::run(&args, output),
            Self::Domrename(args) => domrename::run(&args, output),
            Self::Domuuid(args) => domuuid::run(&args, output),
            Self::Domname(args) => domname::run(&args, output),
            Self::Hostname(args) => hostname::run(args, output),
            Self::Nodeinfo(args) => nodeinfo::run(args, output),
            Self::Pwd(args) => interactive::pwd(args, output),
            Self::Version(args) => version::run(args, output),
        }?;
        output.end_of_command()?;
        Ok(status)
    }
}
