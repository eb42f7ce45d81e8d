//! The API: a part of Cloud Hypervisor's REST API, on a Unix socket.
//!
//! | request | what it does |
//! |---|---|
//! | `GET vmm.ping` | returns version and process |
//! | `PUT vmm.shutdown` | ends the monitor |
//! | `PUT vm.create` | takes the guest's configuration; only when the monitor was started without a guest |
//! | `PUT vm.delete` | forgets it; a guest that runs is ended, and the monitor with it |
//! | `PUT vm.boot` | starts the guest |
//! | `GET vm.info` | returns configuration and state |
//! | `GET vm.counters` | returns how often each vCPU returned to the monitor, by reason |
//! | `PUT vm.pause`, `PUT vm.resume` | pauses and resumes vCPUs and devices |
//! | `PUT vm.reboot` | resets the guest as its reset register does: the monitor ends with status 3, and its supervisor starts another |
//! | `PUT vm.power-button` | presses the ACPI power button; a guest that is paused sees it when it is resumed |
//! | `PUT vm.shutdown` | ends the guest, and the monitor with it |
//!
//! Status codes are those of Cloud Hypervisor's OpenAPI document: 404 without a guest, 405 in the wrong state, and 501
//! for requests of that document that this monitor does not implement.

mod http;
mod server;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use bulkhead_kvm::Vcpus;
use serde_json::{Map, Value, json};

use crate::config::VmConfig;
use crate::devices::Devices;
use crate::event_monitor::{EventMonitor, Source};
use crate::stop::{Stop, StopReason};
pub(crate) use http::{Request, Response, Status};
pub(crate) use server::{ApiEvent, Reply, Server};

const PREFIX: &str = "/api/v1/";

const GET: &[&str] = &["vmm.ping", "vm.info", "vm.counters"];
const PUT: &[&str] = &[
    "vmm.shutdown",
    "vm.create",
    "vm.delete",
    "vm.boot",
    "vm.pause",
    "vm.resume",
    "vm.reboot",
    "vm.power-button",
    "vm.shutdown",
];
/// Requests of that document that need a guest and are not implemented.
const NOT_IMPLEMENTED: &[&str] = &[
    "vm.nmi",
    "vm.resize",
    "vm.resize-disk",
    "vm.resize-zone",
    "vm.add-device",
    "vm.add-disk",
    "vm.add-fs",
    "vm.add-generic-vhost-user",
    "vm.add-net",
    "vm.add-pmem",
    "vm.add-user-device",
    "vm.add-vdpa",
    "vm.add-vsock",
    "vm.remove-device",
    "vm.snapshot",
    "vm.coredump",
    "vm.send-migration",
];
/// Requests of that document that make a guest and are not implemented.
const NOT_IMPLEMENTED_WITHOUT_GUEST: &[&str] = &["vm.restore", "vm.receive-migration"];

/// The name of a request that is implemented, or the response that says why it is refused.
fn name(request: &Request, has_guest: bool) -> Result<&str, Response> {
    let unknown = || error(Status::NotFound, "there is no such request");
    let name = request.path.strip_prefix(PREFIX).ok_or_else(unknown)?;
    let put_only = PUT.contains(&name)
        || NOT_IMPLEMENTED.contains(&name)
        || NOT_IMPLEMENTED_WITHOUT_GUEST.contains(&name);
    let method = match name {
        _ if GET.contains(&name) => "GET",
        _ if put_only => "PUT",
        _ => return Err(unknown()),
    };
    if request.method != method {
        let message = format!("{name} is a {method} request");
        return Err(Response::Error(Status::BadRequest, message));
    }
    if NOT_IMPLEMENTED.contains(&name) && !has_guest {
        return Err(no_guest());
    }
    if PUT.contains(&name) || GET.contains(&name) {
        return Ok(name);
    }
    let message = format!("this monitor does not do {name}");
    Err(Response::Error(Status::NotImplemented, message))
}

fn error(status: Status, message: &str) -> Response {
    Response::Error(status, message.to_owned())
}

fn failed(message: &str) -> Response {
    error(Status::Failed, message)
}

fn no_guest() -> Response {
    error(Status::NotFound, "there is no guest: it is not created")
}

fn not_running() -> Response {
    error(Status::NotAllowed, "the guest is not running")
}

fn ping() -> Response {
    Response::Json(json!({
        "build_version": concat!("bulkhead-vmm ", env!("CARGO_PKG_VERSION")),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "features": [],
    }))
}

fn info(config: &VmConfig, state: &str) -> Response {
    Response::Json(json!({
        "config": config,
        "state": state,
        "memory_actual_size": config.memory.size,
    }))
}

/// The API while there is no guest yet.
#[derive(Default)]
pub(crate) struct Waiting {
    config: Option<VmConfig>,
    /// The folder in which a guest that the API creates may have its serial port.
    folder: PathBuf,
    /// The guest is being built.
    boots: bool,
    /// A request has ended the monitor.
    ends: bool,
}

/// What the monitor does after a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Wait,
    End,
}

impl Waiting {
    /// Without a guest.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            ..Self::default()
        }
    }

    /// While the guest of the command line is being built.
    pub(crate) fn booting(config: &VmConfig) -> Self {
        Self {
            config: Some(config.clone()),
            boots: true,
            ..Self::default()
        }
    }

    /// The response to `vm.boot` when the guest cannot be built.
    pub(crate) fn boot_failed(&mut self, why: &str) -> Response {
        self.boots = false;
        failed(why)
    }

    fn create(&self, body: &[u8]) -> Result<VmConfig, String> {
        let config = VmConfig::from_json(body)?;
        config.serial.check_folder(&self.folder)?;
        Ok(config)
    }

    /// Answers a request. `start` begins to build the guest. While it is built, a request can end the guest and the
    /// monitor, as while it runs.
    pub(crate) fn answer(
        &mut self,
        request: &Request,
        start: impl FnOnce(&VmConfig) -> Result<(), String>,
    ) -> (Reply, Next) {
        let name = match name(request, self.config.is_some()) {
            Ok(name) => name,
            Err(response) => return (Reply::Now(response), Next::Wait),
        };
        let response = match (name, &self.config) {
            ("vmm.ping", _) => ping(),
            ("vmm.shutdown", _) => {
                self.config = None;
                self.ends = true;
                return (Reply::Now(Response::Done), Next::End);
            }
            ("vm.create", _) if self.ends => failed("the monitor is ending"),
            ("vm.create", None) => match self.create(&request.body) {
                Ok(config) => {
                    self.config = Some(config);
                    Response::Done
                }
                Err(why) => Response::Error(Status::BadRequest, why),
            },
            ("vm.create", Some(_)) => failed("there is a guest already"),
            ("vm.shutdown" | "vm.delete", Some(_)) if self.boots => {
                self.config = None;
                self.ends = true;
                return (Reply::Now(Response::Done), Next::End);
            }
            ("vm.delete", _) => {
                self.config = None;
                Response::Done
            }
            (_, None) => no_guest(),
            ("vm.info", Some(config)) => info(config, "Created"),
            ("vm.boot", Some(_)) if self.boots => failed("the guest is being booted"),
            ("vm.boot", Some(config)) => match start(config) {
                Ok(()) => {
                    self.boots = true;
                    return (Reply::Later, Next::Wait);
                }
                Err(why) => failed(&why),
            },
            ("vm.resume", Some(_)) => error(Status::NotFound, "the guest is not booted"),
            _ => not_running(),
        };
        (Reply::Now(response), Next::Wait)
    }
}

/// The API while the guest runs, and between the guest's end and the monitor's.
pub(crate) struct Running<'a> {
    config: &'a VmConfig,
    vcpus: &'a Vcpus,
    devices: &'a Devices,
    stop: &'a Stop,
    events: &'a EventMonitor,
    deleted: Cell<bool>,
}

impl<'a> Running<'a> {
    pub(crate) fn new(
        config: &'a VmConfig,
        vcpus: &'a Vcpus,
        devices: &'a Devices,
        stop: &'a Stop,
        events: &'a EventMonitor,
    ) -> Self {
        Self {
            config,
            vcpus,
            devices,
            stop,
            events,
            deleted: Cell::new(false),
        }
    }

    /// Answers a request.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let response = match name(request, !self.deleted.get()) {
            Ok(name) if self.stop.reason().is_some() => self.answer_ended(name),
            Ok(name) => self.answer_running(name),
            Err(response) => response,
        };
        Reply::Now(response)
    }

    fn answer_running(&self, name: &str) -> Response {
        match name {
            "vmm.ping" => ping(),
            "vm.info" if self.vcpus.is_paused() => info(self.config, "Paused"),
            "vm.info" => info(self.config, "Running"),
            "vm.counters" => Response::Json(self.counters()),
            "vm.pause" if self.vcpus.is_paused() => failed("the guest is paused"),
            "vm.pause" => {
                self.report("pausing");
                self.vcpus.pause();
                self.devices.pause();
                self.report("paused");
                Response::Done
            }
            "vm.resume" if self.vcpus.is_paused() => {
                self.report("resuming");
                self.devices.resume();
                self.vcpus.resume();
                self.report("resumed");
                Response::Done
            }
            "vm.resume" => error(Status::NotAllowed, "the guest is not paused"),
            "vm.reboot" => {
                self.stop.report(StopReason::Reset);
                Response::Done
            }
            "vm.power-button" => {
                self.devices.press_power_button();
                Response::Done
            }
            "vm.shutdown" | "vmm.shutdown" | "vm.delete" => {
                self.stop.report(StopReason::Api);
                self.deleted.set(name != "vm.shutdown");
                Response::Done
            }
            _ => failed("the guest is running"),
        }
    }

    fn report(&self, event: &str) {
        self.events.report(Source::Vm, event, &[]);
    }

    fn answer_ended(&self, name: &str) -> Response {
        match name {
            "vmm.ping" => ping(),
            "vmm.shutdown" | "vm.delete" => {
                self.deleted.set(true);
                Response::Done
            }
            "vm.create" => failed("this monitor had its guest: start another monitor"),
            _ if self.deleted.get() => no_guest(),
            "vm.info" => info(self.config, "Shutdown"),
            "vm.boot" => failed("this monitor had its guest: start another monitor"),
            _ => not_running(),
        }
    }

    fn counters(&self) -> Value {
        let vcpus = self.vcpus.exit_counts().into_iter().enumerate();
        let counters = vcpus.map(|(number, counts)| {
            let counts = json!({
                "io": counts.io,
                "mmio": counts.mmio,
                "interrupted": counts.interrupted,
                "other": counts.other,
            });
            (format!("vcpu{number}"), counts)
        });
        Value::Object(Map::from_iter(counters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"payload": {"kernel": "/k"}, "cpus": {"boot_vcpus": 2}}"#;

    fn request(method: &str, name: &str, body: &str) -> Request {
        Request::new(method, &format!("{PREFIX}{name}"), body.as_bytes())
    }

    fn status(reply: &Reply) -> u16 {
        match reply {
            Reply::Now(Response::Json(_)) => 200,
            Reply::Now(Response::Done) => 204,
            Reply::Now(Response::Error(status, _)) => *status as u16,
            Reply::Later => 0,
        }
    }

    impl Waiting {
        fn ask(&mut self, method: &str, name: &str, body: &str) -> (u16, Next) {
            let (reply, next) = self.answer(&request(method, name, body), |_| Ok(()));
            (status(&reply), next)
        }
    }

    #[test]
    fn a_guest_is_created_once_and_then_booted() {
        let mut waiting = Waiting::new(Path::new("/run"));
        assert_eq!(waiting.ask("PUT", "vm.boot", ""), (404, Next::Wait));
        assert_eq!(waiting.ask("PUT", "vm.create", "{}"), (400, Next::Wait));
        assert_eq!(waiting.ask("PUT", "vm.create", CONFIG), (204, Next::Wait));
        assert_eq!(waiting.ask("PUT", "vm.create", CONFIG), (500, Next::Wait));
        let build = |_: &VmConfig| Err("wrong".to_owned());
        let (reply, next) = waiting.answer(&request("PUT", "vm.boot", ""), build);
        assert_eq!((reply, next), (Reply::Now(failed("wrong")), Next::Wait));
        for _ in 0..2 {
            assert_eq!(waiting.ask("PUT", "vm.boot", ""), (0, Next::Wait));
            assert_eq!(waiting.ask("PUT", "vm.boot", ""), (500, Next::Wait));
            assert_eq!(waiting.ask("GET", "vm.info", ""), (200, Next::Wait));
            assert_eq!(waiting.ask("PUT", "vm.pause", ""), (405, Next::Wait));
            assert_eq!(waiting.boot_failed("wrong"), failed("wrong"));
        }
        assert_eq!(waiting.ask("PUT", "vm.delete", ""), (204, Next::Wait));
    }

    #[test]
    fn a_guest_that_is_being_booted_is_ended_with_its_monitor() {
        for request in ["vm.shutdown", "vm.delete", "vmm.shutdown"] {
            let mut waiting = Waiting::new(Path::new("/run"));
            assert_eq!(waiting.ask("PUT", "vm.create", CONFIG).0, 204);
            assert_eq!(waiting.ask("PUT", "vm.boot", ""), (0, Next::Wait));
            assert_eq!(waiting.ask("PUT", request, ""), (204, Next::End));
            assert_eq!(waiting.ask("PUT", "vm.boot", ""), (404, Next::Wait));
        }
    }

    #[test]
    fn status_codes_are_the_contract_s() {
        let mut waiting = Waiting::new(Path::new("/run"));
        // Without a guest, and with one that is not booted.
        let codes = [
            ("GET", "vmm.ping", 200, 200),
            ("GET", "vm.info", 404, 200),
            ("GET", "vm.counters", 404, 405),
            ("PUT", "vm.pause", 404, 405),
            ("PUT", "vm.resume", 404, 404),
            ("PUT", "vm.shutdown", 404, 405),
            ("PUT", "vm.reboot", 404, 405),
            ("PUT", "vm.power-button", 404, 405),
            ("PUT", "vm.add-disk", 404, 501),
            ("PUT", "vm.restore", 501, 501),
            ("PUT", "vm.nonsense", 404, 404),
            ("GET", "", 404, 404),
            ("GET", "vm.boot", 400, 400),
            ("PUT", "vm.info", 400, 400),
            ("DELETE", "vm.delete", 400, 400),
        ];
        for (method, name, code, _) in codes {
            assert_eq!(waiting.ask(method, name, "").0, code, "{method} {name}");
        }
        assert_eq!(waiting.ask("PUT", "vm.create", CONFIG).0, 204);
        for (method, name, _, code) in codes {
            assert_eq!(waiting.ask(method, name, "").0, code, "{method} {name}");
        }
        for _ in 0..2 {
            assert_eq!(waiting.ask("PUT", "vm.delete", "").0, 204);
        }
        assert_eq!(waiting.ask("PUT", "vmm.shutdown", ""), (204, Next::End));
    }

    #[test]
    fn an_ended_monitor_has_no_guest() {
        let mut waiting = Waiting::new(Path::new("/run"));
        assert_eq!(waiting.ask("PUT", "vm.create", CONFIG).0, 204);
        assert_eq!(waiting.ask("PUT", "vmm.shutdown", ""), (204, Next::End));
        // What was pipelined behind it.
        assert_eq!(waiting.ask("PUT", "vm.create", CONFIG), (500, Next::Wait));
        assert_eq!(waiting.ask("PUT", "vm.boot", ""), (404, Next::Wait));
    }

    #[test]
    fn a_configuration_is_refused_by_the_name_of_what_is_wrong() {
        for (more, name) in [
            (r#""memory": {"size": -1}"#, "memory.size: a whole number"),
            (r#""memory": {"size": 1e30}"#, "memory.size: a whole number"),
            (r#""memory": 5"#, "memory: an object"),
            (
                r#""disks": [{"vhost_user": true}]"#,
                "disks[0]: missing field `vhost_socket`",
            ),
            (
                r#""net": [{"vhost_user": true, "vhost_socket": "/s"}, {"vhost_user": true, "vhost_socket": "/s", "num_queues": 70000}]"#,
                "net[1].num_queues: ",
            ),
            (
                r#""net": [{"vhost_user": true, "vhost_socket": "/s", "mac": "zz"}]"#,
                "net[0].mac: ",
            ),
            (r#""fs": [{"socket": "/s"}]"#, "fs[0]: missing field `tag`"),
            (r#""cpus": {}"#, "cpus: missing field"),
            (r#""x": 1"#, "x: unknown field `x`"),
        ] {
            let body = format!(r#"{{"payload": {{"kernel": "/k"}}, {more}}}"#);
            let error = VmConfig::from_json(body.as_bytes()).unwrap_err();
            assert!(error.starts_with(name), "{more}: {error}");
        }
    }

    #[test]
    fn a_configuration_out_of_range_is_refused() {
        let body = br#"{"payload": {"kernel": "/k"}, "cpus": {"boot_vcpus": 0}}"#;
        let error = VmConfig::from_json(body).unwrap_err();
        assert!(error.contains("--cpus"), "{error}");
    }
}
