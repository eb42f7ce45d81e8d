//! A guest is described once, by its [`Definition`]. [`Plan`] derives its processes from that, and asks the host
//! nothing.

mod command_line;
pub(crate) mod definition;
mod options;
mod plan;
mod process;

pub(crate) use command_line::CommandLine;
pub(crate) use definition::{Action, Definition, guest_name};
pub(crate) use plan::{Console, EVENTS, Helper, MONITOR_FOLDER, Plan, Site, Sockets, net_name};
pub(crate) use process::{Process, Role};
