//! `bulkhead domrename`: gives a guest another name.

use std::process::ExitCode;

use anyhow::bail;

use crate::domain::DomainArg;
use crate::output::Output;
use crate::store::Store;

/// A guest that is renamed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    #[command(flatten)]
    new_name: NewName,
}

#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct NewName {
    /// New name of the guest
    #[arg(value_name = "NEW-NAME")]
    new_name: Option<String>,
    /// The same, as an option
    #[arg(long = "new-name", value_name = "NEW-NAME", hide = true)]
    new_name_option: Option<String>,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    if domain.running.is_some() {
        bail!(
            "Requested operation is not valid: cannot rename active domain: 'bulkhead shutdown {}' ends it",
            domain.name()
        );
    }
    let new_name = args.new_name.new_name.as_ref();
    let new_name = new_name.or(args.new_name.new_name_option.as_ref());
    let store = Store::open()?;
    store
        .change()?
        .rename(domain.name(), new_name.map_or("", |name| name))?;
    output.success("Domain successfully renamed")?;
    Ok(ExitCode::SUCCESS)
}
