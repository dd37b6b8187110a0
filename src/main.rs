//! `rowmill`, the command line. It puts the scheduler and the executor together and talks to people: data goes to
//! standard output, everything else to standard error. It computes nothing itself.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod allocator;
mod args;
mod audit;
mod bench;
mod cancel;
mod doctor;
mod estimate;
mod footers;
mod gc;
mod health;
mod models;
mod output;
mod plan;
mod planned;
mod preview;
mod progress;
mod published;
mod run;
mod serve;
mod setup;
mod submit;
mod verify;
mod work;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use rowmill_jobs::{Error, Result};

use crate::args::{AuditCommand, Cli, Command, ModelsCommand};
use crate::output::{Format, say, tell};

/// Threads for blocking work end when they are idle for this long. What other threads free of an idle thread's memory stays
/// with it until it runs again: with tokio's ten seconds, a run's peak grows with the number of threads that ever wrote.
const IDLE_THREAD_MAX: std::time::Duration = std::time::Duration::from_millis(2);
/// How long the store may stay away from a process that computes a shard on its own.
const ISOLATED_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = if cli.json { Format::Json } else { Format::Text };
    // A panic's message may quote a row; its place is enough to find the defect.
    std::panic::set_hook(Box::new(|panic| {
        tell(&format!("a defect of Rowmill at {}", panic.location().map_or("?".into(), ToString::to_string)));
    }));
    if let Err(error) = listen(&cli.log) {
        tell(&error.report());
        return ExitCode::from(error.kind().exit_code());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(IDLE_THREAD_MAX).build();
    let (runtime, result) = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(dispatch(cli.command, cli.config.as_deref(), format));
            (Some(runtime), result)
        }
        Err(error) => (None, Err(Error::internal("cannot start the runtime").caused_by(error))),
    };
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error.report());
            if format == Format::Json {
                say(&output::failure(&error).to_string());
            }
            ExitCode::from(error.kind().exit_code())
        }
    };
    // Work that blocks a thread (hashing or loading a model) is not waited for; it changes nothing that lasts.
    if let Some(runtime) = runtime {
        runtime.shutdown_background();
    }
    code
}

async fn dispatch(command: Command, config: Option<&Path>, format: Format) -> Result<()> {
    match command {
        Command::Run(args) => run::run(args, config, format).await,
        Command::Plan(job) => plan::plan(&job, config, format).await,
        Command::Preview { job, rows, engine } => {
            let egress = setup::egress(config, &setup::process_name(), None)?;
            preview::preview(&job, rows, preview::Means { limits: engine.limits(), egress }, format).await
        }
        Command::Submit(args) => submit::submit(&args, config, format).await,
        Command::Work(args) => work::work(&args, config, format).await,
        Command::Serve(args) => serve::serve(&args).await,
        Command::Cancel(args) => cancel::cancel(&args, format).await,
        Command::Gc { output, abandoned_after, grace } => gc::gc(&output, abandoned_after, grace, format).await,
        Command::Isolated { order, engine } => {
            let egress = setup::egress(config, &setup::process_name(), None)?;
            say(&rowmill_executor::isolate::obey(&order, ISOLATED_PATIENCE, engine.limits(), egress).await);
            Ok(())
        }
        Command::Resolve { output, date } => published::resolve(&output, date.as_deref(), format).await,
        Command::Status(id) => published::status(&id, format).await,
        Command::Models(ModelsCommand::List(args)) => models::list(args, format).await,
        Command::Models(ModelsCommand::Verify(args)) => verify::verify(args, format).await,
        Command::Models(ModelsCommand::Bench(args)) => bench::bench(args, format).await,
        Command::Models(ModelsCommand::Pull(job)) => models::pull(&job, format).await,
        Command::Doctor(output) => doctor::doctor(&output, format).await,
        Command::Audit(AuditCommand::Verify { folder }) => audit::verify(&folder, format),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "rowmill", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Sends logs to standard error.
fn listen(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| {
        Error::new(rowmill_jobs::Kind::Usage, format!("--log {filter} is no filter")).caused_by(error)
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}
