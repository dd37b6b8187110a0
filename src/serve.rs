//! `rowmill serve`: the scheduler as a service. It computes nothing and reads no rows.

use std::sync::Arc;

use rowmill_jobs::Result;
use rowmill_jobs::queue::redis::RedisOptions;
use rowmill_scheduler::service::Service;

use crate::args::ServeArgs;
use crate::health::{self, Health, SILENCE_MAX};
use crate::output::tell;
use crate::setup::{output_url, redis_server, told_to_stop};

/// Schedules runs until it is told to stop.
///
/// # Errors
/// Redis stayed away for too long.
pub(crate) async fn serve(args: &ServeArgs) -> Result<()> {
    let options = RedisOptions { pool: args.pool.clone(), patience: args.redis.patience(), ..RedisOptions::default() };
    let outputs = args.outputs.iter().map(|output| output_url(output)).collect::<Result<Vec<_>>>()?;
    let service = Arc::new(Service::new(redis_server(&args.redis)?, options, outputs));
    let ready = {
        let service = Arc::clone(&service);
        move || service.silence() < SILENCE_MAX
    };
    let _health = match args.health {
        Some(address) => Some(health::serve(address, Health::new(ready), Some(Arc::clone(&service))).await?),
        None => None,
    };
    tokio::select! {
        ended = service.serve(&tell) => ended,
        signal = told_to_stop() => {
            tell(&format!("{signal}: stopped; another scheduler, or this one started again, goes on"));
            Ok(())
        }
    }
}
