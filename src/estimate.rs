//! What `rowmill plan` says of tokens, time and money: this machine beside each lane of a managed model. From a sample of
//! rows that is read here and sent nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rowmill_executor::estimate::{CallEstimate, Measure, Meter};
use rowmill_executor::lane::Lane;
use rowmill_executor::pricing::{ModelPrice, Tokens, local_cost};
use rowmill_executor::{Egress, Engines, Outlook, ResolvedModel, Watch};
use rowmill_jobs::infer::Engine;
use rowmill_jobs::plan::{Shard, Slice};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Result, money};
use rowmill_scheduler::Draft;
use rowmill_sql::{CompiledJob, Observer};
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::output::table;

/// Places of the table that the sample is taken from.
const PLACES: usize = 4;

/// What a run would take.
#[derive(Debug)]
pub(crate) struct Estimate {
    sampled: u64,
    rows: u64,
    calls: Vec<PricedCall>,
    /// Of models that choose their lanes.
    outlooks: Vec<Outlook>,
    here: Option<Here>,
}

/// A call, and what it would cost at a managed model.
#[derive(Debug)]
struct PricedCall {
    call: CallEstimate,
    /// The model, by its name in the job file.
    quote: Option<(String, ModelPrice)>,
}

/// The whole run on this machine.
#[derive(Debug)]
struct Here {
    time: Duration,
    nano_usd: Option<u64>,
}

/// Estimates a run; nothing is known where its query has to be staged first, or no row is to be read.
///
/// # Errors
/// The sample cannot be read, or a model fails.
pub(crate) async fn estimate(
    job: &JobSpec,
    draft: &Draft,
    models: Vec<ResolvedModel>,
    egress: &Egress,
    args: &PlanArgs,
) -> Result<Option<Estimate>> {
    let Some(shards) = draft.shards.as_ref().filter(|_| args.sample > 0 && !draft.compiled.calls().is_empty()) else {
        return Ok(None);
    };
    let slices = sample(shards, args.sample);
    let sampled: u64 = slices.iter().map(|slice| slice.rows).sum();
    let rows: u64 = shards.iter().map(Shard::rows).sum();
    let engines = Engines::new(args.engine.limits());
    let measure = if args.measure { Measure::Models } else { Measure::Prompts };
    let meter = Meter::new(models.clone(), &engines, measure);
    let mut here = None;
    if args.measure {
        // Models are loaded by the first row; that is no part of the rate.
        let first: Vec<Slice> = slices.iter().take(1).map(|slice| Slice { rows: 1, ..slice.clone() }).collect();
        let warm = Meter::new(models, &engines, measure);
        answer(&draft.compiled, &first, &warm).await?;
        let started = Instant::now();
        answer(&draft.compiled, &slices, &meter).await?;
        let time = started.elapsed().mul_f64(rows as f64 / sampled.max(1) as f64);
        let nano_usd = egress.nano_usd_per_machine_hour().map(|hour| local_cost(time, hour));
        here = Some(Here { time, nano_usd });
    } else {
        answer(&draft.compiled, &slices, &meter).await?;
    }
    let calls = meter.estimate(draft.compiled.calls(), sampled, rows);
    let outlooks = egress.outlook(job, draft.compiled.calls(), &calls)?;
    let priced = |call: CallEstimate| PricedCall { quote: egress.quote(job, &call.model), call };
    Ok(Some(Estimate { sampled, rows, calls: calls.into_iter().map(priced).collect(), outlooks, here }))
}

/// Runs rows through a meter, for what it sees.
async fn answer(compiled: &CompiledJob, slices: &[Slice], meter: &Arc<Meter>) -> Result<()> {
    let watch: Arc<dyn Observer> = Arc::new(Watch(Arc::new(Counters::default())));
    let mut rows = compiled.run(slices, Arc::clone(meter) as Arc<dyn Engine>, watch)?;
    while rows.next().await.transpose()?.is_some() {}
    Ok(())
}

/// About `rows` rows from places all over the table: its beginning is seldom like the rest.
fn sample(shards: &[Shard], rows: u64) -> Vec<Slice> {
    let slices: Vec<&Slice> = shards.iter().flat_map(|shard| &shard.slices).collect();
    let places = PLACES.min(slices.len());
    let each = rows.div_ceil(places.max(1) as u64);
    let at = |place: usize| slices[place * slices.len() / places];
    (0..places).map(at).map(|slice| Slice { rows: slice.rows.min(each), ..slice.clone() }).collect()
}

impl PricedCall {
    /// Nano-dollars in a lane.
    fn cost(&self, lane: Lane) -> Option<u64> {
        self.quote.as_ref().map(|(_, price)| self.cost_at(price, lane))
    }

    /// The same, at this price.
    fn cost_at(&self, price: &ModelPrice, lane: Lane) -> u64 {
        let tokens = Tokens { input: self.call.input_tokens, output: self.call.output_tokens, ..Tokens::default() };
        // A long prompt's price is that of each request, not of all together.
        let requests = self.call.requests.max(1);
        let one = Tokens { input: tokens.input / requests, output: tokens.output / requests, ..tokens };
        price.cost(one, lane).saturating_mul(requests)
    }
}

impl Estimate {
    fn cost(&self, lane: Lane) -> Option<u64> {
        self.calls.iter().map(|call| call.cost(lane)).sum()
    }

    /// What the calls that may go to a model cost there in a lane.
    fn cost_of(&self, outlook: &Outlook, lane: Lane) -> Option<u64> {
        let price = outlook.price.as_ref()?;
        Some(outlook.calls.iter().filter_map(|call| self.calls.get(*call)).map(|call| call.cost_at(price, lane)).sum())
    }

    /// As JSON.
    pub(crate) fn to_json(&self) -> Value {
        let lanes = |cost: &dyn Fn(Lane) -> Option<u64>| -> Value {
            Lane::ALL.iter().map(|lane| (lane.as_str().to_owned(), usd(cost(*lane)))).collect()
        };
        let calls = self.calls.iter().map(|priced| {
            json!({
                "column": priced.call.column,
                "model": priced.call.model,
                "requests": priced.call.requests,
                "input_tokens": priced.call.input_tokens,
                "output_tokens": priced.call.output_tokens,
                "output_assumed": priced.call.assumed,
                "priced_as": priced.quote.as_ref().map(|(model, _)| model),
                "price_source": priced.quote.as_ref().map(|(_, price)| &price.source),
                "cost_usd": lanes(&|lane| priced.cost(lane)),
            })
        });
        json!({
            "sampled_rows": self.sampled,
            "rows": self.rows,
            "calls": calls.collect::<Vec<_>>(),
            "cost_usd": lanes(&|lane| self.cost(lane)),
            "auto": self.outlooks.iter().map(|outlook| json!({
                "model": outlook.model,
                "lane": outlook.lane.as_str(),
                "cost_usd": usd(self.cost_of(outlook, outlook.lane)),
                "online_from": outlook.online_from,
                "online_cost_usd": usd(self.cost_of(outlook, Lane::Online)),
            })).collect::<Vec<_>>(),
            "local": self.here.as_ref().map(|here| json!({
                "seconds": here.time.as_secs_f64(),
                "rows_per_second": self.rows as f64 / here.time.as_secs_f64().max(1e-9),
                "cost_usd": usd(here.nano_usd),
            })),
        })
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let heading = ["column", "requests", "tokens in", "tokens out", "priced as", "online", "flex", "batch"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        let lanes = |cost: &dyn Fn(Lane) -> Option<u64>| Lane::ALL.map(|lane| dollars(cost(lane)));
        for priced in &self.calls {
            let CallEstimate { column, requests, input_tokens, output_tokens, assumed, .. } = &priced.call;
            let out = format!("{output_tokens}{}", if *assumed { " (assumed)" } else { "" });
            let model = priced.quote.as_ref().map_or("-", |(model, _)| model);
            let mut row = vec![column.clone(), requests.to_string(), input_tokens.to_string(), out, model.to_owned()];
            row.extend(lanes(&|lane| priced.cost(lane)));
            rows.push(row);
        }
        if self.calls.len() > 1 {
            let mut row = vec!["all".to_owned()];
            row.resize(5, String::new());
            row.extend(lanes(&|lane| self.cost(lane)));
            rows.push(row);
        }
        let here = match &self.here {
            Some(here) => format!(
                "this machine alone: {} at {:.1} rows/s, {}",
                clock(here.time),
                self.rows as f64 / here.time.as_secs_f64().max(1e-9),
                here.nano_usd.map_or_else(
                    || "whose hour has no price: set usd_per_machine_hour in [local] of rowmill.toml".to_owned(),
                    |nano_usd| dollars(Some(nano_usd))
                )
            ),
            None => "this machine alone: --measure lets its models answer the sample".to_owned(),
        };
        let autos: String = self.outlooks.iter().map(|outlook| self.auto_text(outlook)).collect();
        format!("estimated from {} of {} rows\n{}\n{autos}{here}", self.sampled, self.rows, table(&rows))
    }

    /// Which lane a model takes, and what that costs.
    fn auto_text(&self, outlook: &Outlook) -> String {
        let Outlook { model, lane, online_from, .. } = outlook;
        let cost = |lane| dollars(self.cost_of(outlook, lane));
        let rest = online_from.as_ref().map_or_else(String::new, |moment| {
            format!("; what has no answer by {moment} goes online, {} for all", cost(Lane::Online))
        });
        format!("model {model} takes lane {lane}, {}{rest}\n", cost(*lane))
    }
}

/// Dollars as a JSON number; null where nothing is known.
fn usd(nano_usd: Option<u64>) -> Value {
    nano_usd.map_or(Value::Null, |nano_usd| serde_json::from_str(&money::show(nano_usd)).unwrap_or_default())
}

/// Dollars for people.
fn dollars(nano_usd: Option<u64>) -> String {
    nano_usd.map_or_else(|| "-".to_owned(), |nano_usd| format!("{:.4} USD", nano_usd as f64 / money::NANO_USD as f64))
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{:.1} s", time.as_secs_f64()),
        (0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_comes_from_all_over_the_table() {
        let slice = |row_group, rows| Slice { file: 0, row_group, first_row: 0, rows };
        let shards: Vec<Shard> = (0..10)
            .map(|index| Shard { index, slices: vec![slice(index * 2, 30), slice(index * 2 + 1, 100)] })
            .collect();
        let taken = sample(&shards, 200);
        assert_eq!(taken.iter().map(|slice| slice.row_group).collect::<Vec<_>>(), [0, 5, 10, 15]);
        assert_eq!(taken.iter().map(|slice| slice.rows).collect::<Vec<_>>(), [30, 50, 30, 50]);
        assert_eq!(sample(&shards[..1], 3).iter().map(|slice| slice.rows).sum::<u64>(), 4);
        assert!(sample(&[], 3).is_empty());
    }

    #[test]
    fn times_are_told_as_people_tell_them() {
        for (seconds, told) in [(0.4, "0.4 s"), (61.0, "1 min 1 s"), (7_380.0, "2 h 3 min")] {
            assert_eq!(clock(Duration::from_secs_f64(seconds)), told);
        }
    }
}
