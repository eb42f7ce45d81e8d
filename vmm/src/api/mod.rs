//! The API: Cloud Hypervisor's REST over a Unix socket, as far as it goes here.
//!
//! | request | what it does |
//! |---|---|
//! | `GET vmm.ping` | tells version and process |
//! | `PUT vmm.shutdown` | ends the monitor |
//! | `PUT vm.create` | takes the guest's configuration; only when the monitor was started without a guest |
//! | `PUT vm.delete` | forgets it |
//! | `PUT vm.boot` | starts the guest |
//! | `GET vm.info` | tells configuration and state |
//! | `GET vm.counters` | tells how often each vCPU returned to the monitor, by reason |
//! | `PUT vm.pause`, `PUT vm.resume` | stops and goes on |
//! | `PUT vm.shutdown` | ends the guest, and the monitor with it |

mod http;

use bulkhead_kvm::Vcpus;
use serde_json::{Map, Value, json};

use crate::config::VmConfig;
use crate::ending::{Ending, Endings};
pub(crate) use http::{ApiEvent, Request, Response, Server};

const PREFIX: &str = "/api/v1/";

/// A request, split into method and name.
fn name(request: &Request) -> (&str, &str) {
    let name = request.path.strip_prefix(PREFIX).unwrap_or("");
    (request.method.as_str(), name)
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
}

/// What to do after a request was answered.
pub(crate) enum Next {
    Wait,
    End,
}

impl Waiting {
    /// Answers a request; `boot` starts the guest.
    pub(crate) fn answer(
        &mut self,
        request: &Request,
        boot: impl FnOnce(&VmConfig) -> Result<(), String>,
    ) -> (Response, Next) {
        let wait = |response| (response, Next::Wait);
        match (name(request), &self.config) {
            (("GET", "vmm.ping"), _) => wait(ping()),
            (("PUT", "vmm.shutdown"), _) => (Response::Done, Next::End),
            (("PUT", "vm.create"), None) => match read_config(&request.body) {
                Ok(config) => {
                    self.config = Some(config);
                    wait(Response::Done)
                }
                Err(error) => wait(Response::Bad(error)),
            },
            (("PUT", "vm.create"), Some(_)) => wait(failed("there is a guest already")),
            (("PUT", "vm.delete"), Some(_)) => {
                self.config = None;
                wait(Response::Done)
            }
            (("GET", "vm.info"), Some(config)) => wait(info(config, "Created")),
            (("PUT", "vm.boot"), Some(config)) => match boot(config) {
                Ok(()) => (Response::Done, Next::End),
                Err(error) => wait(Response::Failed(error)),
            },
            (_, None) if is_about_guest(request) => wait(failed("there is no guest")),
            (_, Some(_)) if is_about_guest(request) => wait(failed("the guest is not running")),
            _ => wait(Response::NotFound),
        }
    }
}

fn read_config(body: &[u8]) -> Result<VmConfig, String> {
    let config: VmConfig = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    config.check()?;
    Ok(config)
}

fn failed(why: &str) -> Response {
    Response::Failed(why.to_owned())
}

/// Whether it is one of the requests a running guest answers.
fn is_about_guest(request: &Request) -> bool {
    let known = [
        ("GET", "vm.info"),
        ("GET", "vm.counters"),
        ("PUT", "vm.boot"),
        ("PUT", "vm.delete"),
        ("PUT", "vm.pause"),
        ("PUT", "vm.resume"),
        ("PUT", "vm.shutdown"),
    ];
    known.contains(&name(request))
}

/// The API while the guest runs.
pub(crate) struct Running<'a> {
    pub(crate) config: &'a VmConfig,
    pub(crate) vcpus: &'a Vcpus,
    pub(crate) endings: &'a Endings,
}

impl Running<'_> {
    /// Answers a request.
    pub(crate) fn answer(&self, request: &Request) -> Response {
        match name(request) {
            ("GET", "vmm.ping") => ping(),
            ("GET", "vm.info") if self.vcpus.is_paused() => info(self.config, "Paused"),
            ("GET", "vm.info") => info(self.config, "Running"),
            ("GET", "vm.counters") => Response::Json(self.counters()),
            ("PUT", "vm.pause") if self.vcpus.is_paused() => failed("the guest is paused"),
            ("PUT", "vm.pause") => {
                self.vcpus.pause();
                Response::Done
            }
            ("PUT", "vm.resume") if self.vcpus.is_paused() => {
                self.vcpus.resume();
                Response::Done
            }
            ("PUT", "vm.resume") => failed("the guest is not paused"),
            ("PUT", "vm.shutdown" | "vmm.shutdown") => {
                self.endings.tell(Ending::Stopped);
                Response::Done
            }
            ("PUT", "vm.create" | "vm.boot" | "vm.delete") => failed("the guest is running"),
            _ => Response::NotFound,
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

    fn request(method: &str, name: &str, body: &str) -> Request {
        Request::new(method, &format!("{PREFIX}{name}"), body.as_bytes())
    }

    #[test]
    fn a_guest_is_created_once_and_then_booted() {
        const CONFIG: &str = r#"{"payload": {"kernel": "/k"}, "cpus": {"boot_vcpus": 2}}"#;
        let mut waiting = Waiting::default();
        let mut ask = |method, name, body| {
            let answer = |config: &VmConfig| match config.cpus.boot_vcpus {
                2 => Ok(()),
                _ => Err("wrong".to_owned()),
            };
            let (response, next) = waiting.answer(&request(method, name, body), answer);
            (response, matches!(next, Next::End))
        };

        assert_eq!(
            ask("PUT", "vm.boot", ""),
            (failed("there is no guest"), false)
        );
        assert!(matches!(
            ask("PUT", "vm.create", "{}"),
            (Response::Bad(_), false)
        ));
        assert_eq!(ask("PUT", "vm.create", CONFIG), (Response::Done, false));
        assert!(matches!(
            ask("PUT", "vm.create", CONFIG),
            (Response::Failed(_), false)
        ));
        let paused = failed("the guest is not running");
        assert_eq!(ask("PUT", "vm.pause", ""), (paused, false));
        assert_eq!(ask("PUT", "vm.boot", ""), (Response::Done, true));
        assert_eq!(ask("GET", "vm.boot", ""), (Response::NotFound, false));
        assert_eq!(ask("GET", "", ""), (Response::NotFound, false));
    }

    #[test]
    fn a_configuration_out_of_range_is_refused() {
        let body = br#"{"payload": {"kernel": "/k"}, "cpus": {"boot_vcpus": 0}}"#;
        let error = read_config(body).unwrap_err();
        assert!(error.contains("--cpus"), "{error}");
    }
}
