//! `lane = 'auto'`: the cheapest lane that a model's provider has and the operator permits, for as long as the deadline leaves
//! time for it, and online after that. Which lane is the cheapest does not depend on the time, but on prices and the policy:
//! the first process of a run decides, and all take the same. How long it is waited for is decided where it is waited, in
//! [`rowmill_managed::engine::due`].

use std::cmp::Reverse;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Local, SecondsFormat};
use rowmill_jobs::lane::Lane;
use rowmill_jobs::spec::{EngineSpec, JobSpec};
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result, record};
use rowmill_managed::batch::BatchProvider;
use rowmill_managed::call::Estimate;
use rowmill_managed::engine::due;
use rowmill_managed::policy::Permit;
use rowmill_managed::pricing::{ModelPrice, Tokens};
use rowmill_managed::{Due, ManagedEngine, Remaining};
use rowmill_sql::Call;

use super::{Egress, Means, Sending, asks};
use crate::estimate::CallEstimate;
use crate::forecast::Forecast;

/// A request by whose price lanes are compared.
const REQUEST: Tokens = Tokens { input: 1_000, cached: 0, cache_written: 0, output: 100 };

/// Lanes to choose among at a kind of provider, for a model whose vectors have this length, if it embeds.
pub(super) fn offers(kind: &str, dimensions: Option<u32>) -> impl Iterator<Item = Lane> {
    // What a cancelled batch has done is paid for, and must be had.
    let keeps = BatchProvider::of_name(kind).is_some_and(|provider| !provider.may_bill_lost_rows());
    let has = move |lane: &Lane| match lane {
        Lane::Online => true,
        // No provider has a flex tier for embeddings.
        Lane::Flex => dimensions.is_none(),
        Lane::Batch => keeps,
    };
    Lane::ALL.into_iter().filter(|lane| lane.kinds().contains(&kind)).filter(has).collect::<Vec<_>>().into_iter()
}

/// The cheapest of the lanes, with what a request costs in each as far as that is known. Where online is to be had, another
/// must be cheaper; of two that cost the same, batches, which take nothing of the account's limits. Price lists leave out
/// many providers' batches, which all cost about half.
fn cheapest(offers: &[(Lane, Option<u64>)]) -> Option<Lane> {
    let online = offers.iter().find(|(lane, _)| *lane == Lane::Online);
    let is_worth = |(lane, cost): &&(Lane, Option<u64>)| match (online, lane, cost) {
        (None, ..) | (_, Lane::Online, _) => true,
        (Some((_, Some(online))), _, Some(cost)) => cost < online,
        // Which models have a flex tier is only known where it has a price.
        (Some(_), lane, _) => *lane == Lane::Batch,
    };
    offers.iter().filter(is_worth).min_by_key(|(lane, cost)| (*cost, Reverse(*lane))).map(|(lane, _)| *lane)
}

/// Which lane a model with `lane = 'auto'` takes now.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// The model, by its name in SQL.
    pub model: String,
    /// Calls that may be asked of it, by their places among the job's: they name it, or spill to it.
    pub calls: Vec<usize>,
    /// What it costs, if that is known.
    pub price: Option<ModelPrice>,
    /// The lane.
    pub lane: Lane,
    /// From when on, as RFC 3339 in this machine's time zone, what has no answer is asked online, if it may be.
    pub online_from: Option<String>,
}

impl Egress {
    /// The permit for the cheapest lane among those that were asked for.
    pub(super) fn cheapest(&self, offers: impl Iterator<Item = Result<Permit>>) -> Result<Permit> {
        let (mut permits, mut refused) = (Vec::new(), None);
        for offer in offers {
            match offer {
                Ok(permit) => permits.push(permit),
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        let cost = |permit: &Permit| {
            let price = self.accounts.price(permit).ok()?;
            let has_own = match permit.lane() {
                Lane::Online => true,
                Lane::Flex => price.flex.is_some(),
                Lane::Batch => price.batch.is_some(),
            };
            has_own.then(|| price.cost(REQUEST, permit.lane()))
        };
        let priced: Vec<_> = permits.iter().map(|permit| (permit.lane(), cost(permit))).collect();
        let lane = cheapest(&priced);
        let permit = permits.into_iter().find(|permit| Some(permit.lane()) == lane);
        permit.ok_or_else(|| refused.unwrap_or_else(|| Error::internal("no lane was asked for")))
    }

    /// An engine in the cheapest lane, which asks online what it has no time for. A preview waits for nothing.
    pub(super) async fn choosing(
        &self,
        run: Sending<'_>,
        name: &str,
        permit: Permit,
        means: &Means<'_>,
    ) -> Result<ManagedEngine> {
        let Some((plan, store)) = run.plan.zip(run.store) else {
            let permit = self.online_permit(run, name).unwrap_or(permit);
            return self.in_lane(run, name, permit, means).await;
        };
        let permit = self.decided(run, store.as_ref(), name, permit).await?;
        let (lane, alias) = (permit.lane(), permit.provider().to_owned());
        let engine = self.in_lane(run, name, permit, means).await?;
        let online = match lane {
            Lane::Online => None,
            Lane::Flex => self.again(run, name, means).await?,
            Lane::Batch => engine.online(),
        };
        let (Some(online), Some(deadline_ms), Some(forecast)) = (online, plan.deadline_ms, Forecast::of(plan, store))
        else {
            return Ok(engine);
        };
        let calls = run.calls.iter().filter(|call| goes_to(run.job, call, &alias)).count() as u64;
        Ok(engine.until(Due::new(online, deadline_ms, calls, Arc::new(forecast))))
    }

    /// The permit for the lane that the run has taken, which is this permit's if nobody has decided. In another, batches that
    /// are under way would not be found again, and their rows be paid twice.
    async fn decided(&self, run: Sending<'_>, store: &dyn Store, name: &str, permit: Permit) -> Result<Permit> {
        let lane = record::decide_lane(store, run.run_key, name, permit.lane()).await?;
        if lane == permit.lane() {
            return Ok(permit);
        }
        tracing::info!(model = name, lane = lane.as_str(), "the run began in this lane and goes on in it");
        self.permit_in(run, name, lane).map_err(|error| {
            let word = lane.as_str();
            let message = format!("the run began in lane {word}, which is not permitted any more: {error}");
            Error::new(error.kind(), message)
                .caused_by(error)
                .hint(format!("permit lane {word} until the run has ended, or start again with --rerun ID"))
        })
    }

    /// Which lanes models with `lane = 'auto'` take now, when their calls ask so much.
    ///
    /// # Errors
    /// As [`Egress::permits`].
    pub fn outlook(&self, job: &JobSpec, calls: &[Call], asked: &[CallEstimate]) -> Result<Vec<Outlook>> {
        let now = Local::now();
        let Some(deadline_ms) = job.deadline_ms(&now)? else { return Ok(Vec::new()) };
        let permits = self.permits(job, calls)?;
        let choosing = job.models.iter().filter(|model| model.chooses_lane());
        let outlook = |(model, permit): (&str, &Permit)| {
            let own = calls.iter().zip(asked).filter(|(call, _)| goes_to(job, call, permit.provider()));
            let (requests, tokens) = sum(own.map(|(_, asked)| asked));
            let (lane, patience) = (permit.lane(), self.accounts.patience(permit));
            let rate = self.accounts.pace(permit).per_second(tokens);
            let last_ms = due::last_ms(deadline_ms, due::end_ms(lane, &patience), requests, rate);
            let in_time = now.timestamp_millis() + due::least_ms(lane, &patience) < last_ms;
            let run = Sending { job, calls, run_key: "", store: None, plan: None };
            let has_online = lane != Lane::Online && self.online_permit(run, model).is_some();
            let (lane, last_ms) = match (has_online, in_time) {
                (false, _) => (lane, None),
                (true, false) => (Lane::Online, None),
                (true, true) => (lane, Some(last_ms)),
            };
            let (price, online_from) = (self.accounts.price(permit).ok(), last_ms.and_then(moment));
            let calls = (0..calls.len()).filter(|call| asks(job, &calls[*call], model)).collect();
            Outlook { model: model.to_owned(), calls, price, lane, online_from }
        };
        Ok(choosing.filter_map(|model| Some((model.name.as_str(), permits.get(&model.name)?))).map(outlook).collect())
    }
}

fn moment(at_ms: i64) -> Option<String> {
    let at = DateTime::from_timestamp_millis(at_ms)?.with_timezone(&Local);
    Some(at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Requests in all, and what one takes on average.
fn sum<'a>(asked: impl Iterator<Item = &'a CallEstimate>) -> (u64, Estimate) {
    let all = asked.fold((0_u64, 0_u64, 0_u64), |(requests, input, output), asked| {
        (requests + asked.requests, input + asked.input_tokens, output + asked.output_tokens)
    });
    let each = |tokens: u64| tokens / all.0.max(1);
    (all.0, Estimate { input_tokens: each(all.1), output_tokens: each(all.2), nano_usd_max: 0 })
}

/// Whether a call may be asked of a provider.
fn goes_to(job: &JobSpec, call: &Call, alias: &str) -> bool {
    let is_there = |engine: &EngineSpec| matches!(engine, EngineSpec::Managed { provider, .. } if provider == alias);
    job.models.iter().any(|model| is_there(&model.engine) && asks(job, call, &model.name))
}

#[async_trait]
impl Remaining for Forecast {
    async fn rows(&self) -> Result<u64> {
        self.open_rows().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_lane_is_taken_that_is_cheaper_than_online() {
        use Lane::{Batch, Flex, Online};
        for (offers, lane) in [
            (&[(Online, Some(10)), (Flex, Some(5)), (Batch, Some(5))][..], Some(Batch)),
            (&[(Online, Some(10)), (Flex, Some(5))], Some(Flex)),
            (&[(Online, Some(10)), (Flex, Some(4)), (Batch, Some(5))], Some(Flex)),
            // They save nothing.
            (&[(Online, Some(10)), (Flex, Some(10)), (Batch, Some(10))], Some(Online)),
            // No prices of their own: it is not known whether there is a flex tier.
            (&[(Online, Some(10)), (Flex, None), (Batch, None)], Some(Batch)),
            (&[(Online, Some(10)), (Flex, None)], Some(Online)),
            // No price at all.
            (&[(Online, None), (Flex, None), (Batch, None)], Some(Batch)),
            (&[(Online, None), (Flex, None)], Some(Online)),
            (&[(Online, Some(10))], Some(Online)),
            // The operator permits nothing else.
            (&[(Batch, Some(10))], Some(Batch)),
            (&[(Flex, None)], Some(Flex)),
            (&[], None),
        ] {
            assert_eq!(cheapest(offers), lane, "{offers:?}");
        }
    }

    #[test]
    fn lanes_are_those_of_the_provider_that_lose_nothing() {
        use Lane::{Batch, Flex, Online};
        for (kind, dimensions, lanes) in [
            ("openai", None, &[Online, Flex, Batch][..]),
            ("openai", Some(8), &[Online, Batch]),
            ("anthropic", None, &[Online, Batch]),
            ("bedrock", None, &[Online, Batch]),
            // It gives nothing of a cancelled batch.
            ("gemini", None, &[Online, Flex]),
            ("vllm", None, &[Online]),
        ] {
            assert_eq!(offers(kind, dimensions).collect::<Vec<_>>(), lanes, "{kind}");
        }
    }
}
