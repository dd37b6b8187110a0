//! `spill_to`, `spill_when`, `min_confidence` and `deadline` of `CREATE JOB`: when work of the job's own models goes to
//! managed ones, and until when cheap lanes may be waited for. Whether it may is the operator's policy's to say.

use rowmill_jobs::Result;
use rowmill_jobs::deadline::Deadline;
use rowmill_jobs::error::closest;
use rowmill_jobs::lane::{Lane, LaneChoice};
use rowmill_jobs::spec::{EngineSpec, ModelSpec, SpillSpec, SpillWhen};

use super::job::names;
use super::options::{Options, Place};

const CASES: [(&str, Option<SpillWhen>); 6] = [
    ("never", None),
    ("always", Some(SpillWhen::Always)),
    ("unavailable", Some(SpillWhen::Unavailable)),
    ("late", Some(SpillWhen::Late)),
    ("overflow", Some(SpillWhen::Overflow)),
    ("low_confidence", Some(SpillWhen::LowConfidence)),
];

/// Reads the options. Returns the deadline too.
pub(super) fn read(options: &mut Options<'_>, models: &[ModelSpec]) -> Result<(Option<SpillSpec>, Option<String>)> {
    let to = targets(options, models)?;
    let (when, when_at) = cases(options)?;
    let min_confidence = options.ratio("min_confidence")?;
    let deadline = options.text("deadline")?;
    let needs = |case: SpillWhen| when.contains(&case);
    let choosing = models.iter().find(|model| model.chooses_lane());
    if let Some((text, at)) = &deadline {
        Deadline::parse(text).map_err(|error| place(options, *at, error))?;
        if !needs(SpillWhen::Late) && choosing.is_none() {
            let message =
                "a deadline changes nothing unless the job spills when it is late, or a model chooses its lane";
            return Err(options.error(*at, message).hint(
                "add spill_to = 'MODEL', spill_when = 'late', or lane = 'auto' in CREATE MODEL, or drop the deadline",
            ));
        }
    }
    if let Some(model) = choosing.filter(|_| deadline.is_none()) {
        let hint = format!(
            "model {} has lane = 'auto', which waits as long as the deadline allows: deadline = '06:00', or a moment: \
             '2026-11-21T06:00:00+01:00'",
            model.name
        );
        return Err(options.missing("deadline", &hint));
    }
    let Some(at) = when_at else {
        if min_confidence.is_some() {
            return Err(options.missing("spill_when", "spill_when = 'low_confidence', which min_confidence belongs to"));
        }
        return Ok((to.map(|(to, _)| never(to)), deadline.map(|(text, _)| text)));
    };
    let lacks = |what: &str, hint: &str| Err(options.error(at, format!("this needs {what}")).hint(hint.to_owned()));
    if needs(SpillWhen::Late) && deadline.is_none() {
        return lacks("a deadline", "deadline = '06:00', or a moment: '2026-11-21T06:00:00+01:00'");
    }
    if needs(SpillWhen::LowConfidence) != min_confidence.is_some() {
        return lacks(
            "both spill_when = 'low_confidence' and min_confidence",
            "min_confidence = 0.7: labels with a lower probability are asked elsewhere",
        );
    }
    if let Some((to, to_at)) = to.as_ref().filter(|_| needs(SpillWhen::Late))
        && let Some((slow, why)) = models
            .iter()
            .filter(|model| to.contains(&model.name))
            .find_map(|model| Some((model, keeps_waiting(model)?)))
    {
        let message = format!("model `{}` {why}: what is late cannot wait for it", slow.name);
        return Err(options.error(*to_at, message).hint("spill to a model with lane = 'online', or drop 'late'"));
    }
    match to {
        Some((to, _)) => Ok((Some(SpillSpec { to, when, min_confidence }), deadline.map(|(text, _)| text))),
        None if when.is_empty() => Ok((None, deadline.map(|(text, _)| text))),
        None => lacks("a model to spill to", "spill_to = 'MODEL', a managed model of this file"),
    }
}

/// How a model's lane keeps rows waiting, if it does.
fn keeps_waiting(model: &ModelSpec) -> Option<&'static str> {
    let EngineSpec::Managed { lane, .. } = &model.engine else { return None };
    match lane {
        LaneChoice::Fixed(Lane::Online) => None,
        LaneChoice::Fixed(Lane::Flex) => Some("answers when its provider has room, hours later at times"),
        LaneChoice::Fixed(Lane::Batch) => Some("answers in batches, up to a day later"),
        LaneChoice::Auto => Some("waits for cheap lanes as long as the deadline allows"),
    }
}

fn never(to: Vec<String>) -> SpillSpec {
    SpillSpec { to, when: Vec::new(), min_confidence: None }
}

fn place(options: &Options<'_>, at: Place, error: rowmill_jobs::Error) -> rowmill_jobs::Error {
    let placed = options.error(at, error.to_string());
    match error.hint_text() {
        Some(hint) => placed.hint(hint.to_owned()),
        None => placed,
    }
}

/// `spill_to = 'first, second'`: managed models of the file.
fn targets(options: &mut Options<'_>, models: &[ModelSpec]) -> Result<Option<(Vec<String>, Place)>> {
    let Some((asked, at)) = names(options, "spill_to", "spill_to = 'backup' or spill_to = 'backup, second'")? else {
        return Ok(None);
    };
    let mut to = Vec::with_capacity(asked.len());
    for name in asked {
        let Some(model) = models.iter().find(|model| model.name.eq_ignore_ascii_case(&name)) else {
            let error = options.error(at, format!("there is no model `{name}`"));
            return Err(match closest(&name, models.iter().map(|model| model.name.as_str())) {
                Some(close) => error.hint(format!("did you mean '{close}'?")),
                None => error.hint(format!("define it: CREATE MODEL {name} WITH (engine = 'openai', name = '…')")),
            });
        };
        if !matches!(model.engine, EngineSpec::Managed { .. }) {
            return Err(options
                .error(at, format!("model `{name}` is on this machine: nothing can spill to it"))
                .hint("spill_to names a managed model, such as one with engine = 'openai'"));
        }
        to.push(model.name.clone());
    }
    Ok(Some((to, at)))
}

/// `spill_when = 'late, overflow'`: cases, with the option's place.
fn cases(options: &mut Options<'_>) -> Result<(Vec<SpillWhen>, Option<Place>)> {
    let usage = "spill_when = 'late' or spill_when = 'unavailable, overflow'";
    let Some((asked, at)) = names(options, "spill_when", usage)? else { return Ok((Vec::new(), None)) };
    let mut cases = Vec::with_capacity(asked.len());
    for word in &asked {
        let Some((_, case)) = CASES.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)) else {
            let list = CASES.map(|(known, _)| format!("'{known}'")).join(", ");
            let error = options.error(at, format!("option `spill_when` cannot be '{word}'"));
            return Err(error.hint(format!("it is one or several of {list}")));
        };
        cases.extend(*case);
    }
    let alone = asked.len() > 1 && (cases.len() < asked.len() || cases.contains(&SpillWhen::Always));
    if alone {
        return Err(options.error(at, "'never' and 'always' stand alone").hint(usage));
    }
    Ok((cases, Some(at)))
}
