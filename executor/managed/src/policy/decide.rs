//! Whether a byte may leave. Pure: a configuration and a request go in, a permit or a refusal comes out. What is unknown
//! is refused.

use std::fmt;

use rowmill_jobs::Error;
use serde::{Deserialize, Serialize};

use super::config::{Amounts, Config, Provider, Rule, Terms};
use super::values::{DataClass, Retention};
use crate::lane::Lane;

/// What is to be sent, where.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EgressRequest {
    /// The provider's name in `rowmill.toml`.
    pub provider: String,
    /// The model, as the provider calls it.
    pub model: String,
    /// How.
    pub lane: Lane,
    /// URLs of all tables that the job reads.
    pub datasets: Vec<String>,
    /// Columns whose values stand in the prompts.
    pub columns: Vec<String>,
    /// The job's `never_send`.
    pub never_send: Vec<String>,
    /// The job's own word on how secret its data is.
    pub data_class: Option<DataClass>,
    /// The terms that the job requires, beside those of the rule.
    pub require: Terms,
    /// Whether detectors replace what they find.
    pub redacts: bool,
    /// What the run is expected to send, as far as it is known; checked against a rule's `per_run`.
    pub expected: Amounts,
}

/// Whether the provider may keep requests for the caller's later use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// The request must say `store: false`, where the provider knows the field.
    Forbidden,
    /// Whatever the provider does by itself.
    ProvidersDefault,
}

/// That something may be sent. Only [`super::Policy::decide`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Permit {
    provider: String,
    model: String,
    lane: Lane,
    rule: String,
    policy_hash: String,
    columns: Vec<String>,
    storage: Storage,
    stays_inside: bool,
    redacts: bool,
    per_run: Amounts,
    per_day: Amounts,
}

impl Permit {
    /// The provider's name in `rowmill.toml`.
    pub fn provider(&self) -> &str {
        &self.provider
    }
    /// The model, as the provider calls it.
    pub fn model(&self) -> &str {
        &self.model
    }
    /// The lane. A permit for one is none for another.
    pub fn lane(&self) -> Lane {
        self.lane
    }
    /// The rule that allows it; `self-hosted` if nothing leaves.
    pub fn rule(&self) -> &str {
        &self.rule
    }
    /// Hash of the policy that it was decided by.
    pub fn policy_hash(&self) -> &str {
        &self.policy_hash
    }
    /// Columns whose values may be sent.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }
    /// Whether the provider may keep requests.
    pub fn storage(&self) -> Storage {
        self.storage
    }
    /// Whether the provider runs in the house, so that nothing leaves.
    pub fn stays_inside(&self) -> bool {
        self.stays_inside
    }
    /// Whether detectors must have replaced what they find.
    pub fn redacts(&self) -> bool {
        self.redacts
    }
    /// What a run may send under it at most.
    pub fn per_run(&self) -> Amounts {
        self.per_run
    }
    /// What all runs of a day may send under it at most.
    pub fn per_day(&self) -> Amounts {
        self.per_day
    }
}

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is said in words by the refusal")]
pub enum Reason {
    NoPolicy,
    UnknownProvider,
    Model,
    NeverSend,
    NoDatasets,
    BatchNotAllowed,
    BatchFolder,
    BatchKeepsData,
    NoRule,
    Dataset,
    DataClass,
    Column,
    Lane,
    Retention,
    Region,
    Training,
    Hipaa,
    Redaction,
    RowsPerRun,
    TokensPerRun,
    UsdPerRun,
}

/// Who can change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Whoever keeps `rowmill.toml`.
    Operator,
    /// Whoever writes the job file.
    JobAuthor,
}

/// That something may not be sent, and why. It holds names and numbers of configuration, never row content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What stands in the way.
    pub reason: Reason,
    /// The rule that came closest to allowing it, if any rule names the provider.
    pub rule: Option<String>,
    /// What is there.
    pub found: String,
    /// What would have to change.
    pub change: String,
    /// By whom.
    pub who: Who,
    /// Columns that stand in the way: they must not be read for this provider.
    pub columns: Vec<String>,
}

impl Refusal {
    pub(super) fn new(reason: Reason, who: Who, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self { reason, rule: None, found: found.into(), change: change.into(), who, columns: Vec::new() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy refuses to send this: {}", self.found)?;
        match &self.rule {
            Some(rule) => write!(f, " (rule {rule:?})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let who = match refusal.who {
            Who::Operator => "whoever keeps rowmill.toml can",
            Who::JobAuthor => "in the job,",
        };
        Error::invalid(refusal.to_string()).hint(format!("{who} {}", refusal.change))
    }
}

/// Decides. `hash` names the policy in the permit.
pub(super) fn decide(config: &Config, hash: &str, asked: &EgressRequest) -> Result<Permit, Refusal> {
    let provider = check_provider(config, asked)?;
    if provider.self_hosted {
        return Ok(permit(asked, hash, None));
    }
    check_lane(provider, asked)?;
    check_terms(provider, asked, &asked.require, Who::JobAuthor)?;
    let unclassified = config.egress.unclassified;
    let mut closest: Option<(usize, Refusal)> = None;
    for rule in config.egress.allow.iter().filter(|rule| rule.providers.contains(&asked.provider)) {
        match check_rule(rule, provider, asked, unclassified) {
            Ok(()) => return Ok(permit(asked, hash, Some(rule))),
            Err((passed, mut refusal)) => {
                refusal.rule = Some(rule.name.clone());
                if closest.as_ref().is_none_or(|(most, _)| passed > *most) {
                    closest = Some((passed, refusal));
                }
            }
        }
    }
    Err(closest.map_or_else(|| no_rule(asked), |(_, refusal)| refusal))
}

fn permit(asked: &EgressRequest, hash: &str, rule: Option<&Rule>) -> Permit {
    let terms = rule.map(|rule| &rule.require).into_iter().chain([&asked.require]);
    let keeps_nothing = terms.filter_map(|terms| terms.retention).any(|retention| retention == Retention::ZERO);
    Permit {
        provider: asked.provider.clone(),
        model: asked.model.clone(),
        lane: asked.lane,
        rule: rule.map_or("self-hosted", |rule| &rule.name).to_owned(),
        policy_hash: hash.to_owned(),
        columns: asked.columns.clone(),
        storage: if keeps_nothing { Storage::Forbidden } else { Storage::ProvidersDefault },
        stays_inside: rule.is_none(),
        redacts: asked.redacts,
        per_run: rule.map_or_else(Amounts::default, |rule| rule.per_run),
        per_day: rule.map_or_else(Amounts::default, |rule| rule.per_day),
    }
}

/// What must hold even of a provider in the house.
fn check_provider<'a>(config: &'a Config, asked: &EgressRequest) -> Result<&'a Provider, Refusal> {
    let Some(provider) = config.providers.get(&asked.provider) else {
        let known: Vec<&str> = config.providers.keys().map(String::as_str).collect();
        let found = format!("there is no provider {:?}, only: {}", asked.provider, known.join(", "));
        let change = format!("add [providers.{}]", asked.provider);
        return Err(Refusal::new(Reason::UnknownProvider, Who::Operator, found, change));
    };
    if !provider.models.iter().any(|glob| glob.matches(&asked.model)) {
        let found = format!("model {:?} is not among the models of {:?}", asked.model, asked.provider);
        let change = format!("add it to `models` of [providers.{}]", asked.provider);
        return Err(Refusal::new(Reason::Model, Who::Operator, found, change));
    }
    let kept: Vec<String> = asked.columns.iter().filter(|column| names(&asked.never_send, column)).cloned().collect();
    if !kept.is_empty() {
        let found = format!("the job says never to send {}", kept.join(", "));
        let change = "take the column out of the prompt, or out of never_send";
        return Err(Refusal { columns: kept, ..Refusal::new(Reason::NeverSend, Who::JobAuthor, found, change) });
    }
    Ok(provider)
}

/// Whether a list names a column. SQL folds unquoted names, so case does not keep a column from being one that must stay.
fn names(list: &[String], column: &str) -> bool {
    list.iter().any(|name| name.eq_ignore_ascii_case(column))
}

fn check_lane(provider: &Provider, asked: &EgressRequest) -> Result<(), Refusal> {
    if asked.lane == Lane::Batch && !provider.facts.batch_allowed {
        let found = format!("the batch lane of {:?} is not allowed", asked.provider);
        let change = format!("set batch_allowed = true in [providers.{}.facts]", asked.provider);
        return Err(Refusal::new(Reason::BatchNotAllowed, Who::Operator, found, change));
    }
    let has_folder = provider.batches.s3_uri.is_some() && provider.batches.role_arn.is_some();
    if asked.lane == Lane::Batch && provider.kind.has_batch_folder() && !has_folder {
        let found = format!("batches of {:?} go through a folder of a bucket, and none is named", asked.provider);
        let change = format!("set s3_uri and role_arn in [providers.{}.batches]", asked.provider);
        return Err(Refusal::new(Reason::BatchFolder, Who::Operator, found, change));
    }
    if asked.datasets.is_empty() {
        let found = "it is not known which tables the rows are from";
        return Err(Refusal::new(Reason::NoDatasets, Who::JobAuthor, found, "read the rows from a table"));
    }
    Ok(())
}

/// Checks a rule. An error comes with how many checks were passed before.
fn check_rule(
    rule: &Rule,
    provider: &Provider,
    asked: &EgressRequest,
    unclassified: DataClass,
) -> Result<(), (usize, Refusal)> {
    let checks: [&dyn Fn() -> Result<(), Refusal>; 7] = [
        &|| check_datasets(rule, asked),
        &|| check_class(rule, asked, unclassified),
        &|| check_columns(rule, asked),
        &|| check_rules_lane(rule, asked),
        &|| check_terms(provider, asked, &rule.require, Who::Operator),
        &|| check_redaction(rule, asked),
        &|| check_amounts(rule, asked),
    ];
    for (passed, check) in checks.iter().enumerate() {
        check().map_err(|refusal| (passed, refusal))?;
    }
    Ok(())
}

fn check_datasets(rule: &Rule, asked: &EgressRequest) -> Result<(), Refusal> {
    let outside = asked.datasets.iter().find(|dataset| !rule.datasets.iter().any(|prefix| prefix.covers(dataset)));
    let Some(dataset) = outside else { return Ok(()) };
    let found = format!("rows of {dataset} may not leave");
    Err(Refusal::new(Reason::Dataset, Who::Operator, found, "add the place to the rule's `datasets`"))
}

fn check_class(rule: &Rule, asked: &EgressRequest, unclassified: DataClass) -> Result<(), Refusal> {
    let Some(class_max) = rule.data_class_max else { return Ok(()) };
    let class = asked.data_class.unwrap_or(unclassified);
    if class <= class_max {
        return Ok(());
    }
    let (is, allowed) = (class.as_str(), class_max.as_str());
    if asked.data_class.is_none() {
        let found =
            format!("the job does not say its data_class, which counts as {is}, and {allowed} is the highest allowed");
        return Err(Refusal::new(Reason::DataClass, Who::JobAuthor, found, "say the data_class"));
    }
    let found = format!("the job's data is {is}, and {allowed} is the highest allowed");
    Err(Refusal::new(Reason::DataClass, Who::Operator, found, "raise the rule's `data_class_max`"))
}

fn check_columns(rule: &Rule, asked: &EgressRequest) -> Result<(), Refusal> {
    let allowed = |column: &String| rule.columns.iter().any(|name| name == "*" || name == column);
    let outside: Vec<String> = asked.columns.iter().filter(|column| !allowed(column)).cloned().collect();
    if outside.is_empty() {
        return Ok(());
    }
    let found = format!("the prompts hold columns that may not leave: {}", outside.join(", "));
    let change = "add them to the rule's `columns`";
    Err(Refusal { columns: outside, ..Refusal::new(Reason::Column, Who::Operator, found, change) })
}

fn check_rules_lane(rule: &Rule, asked: &EgressRequest) -> Result<(), Refusal> {
    if rule.lanes.contains(&asked.lane) {
        return Ok(());
    }
    let found = format!("the {} lane is not allowed", asked.lane);
    Err(Refusal::new(Reason::Lane, Who::Operator, found, "add it to the rule's `lanes`"))
}

/// Checks terms against what is asserted of the provider; `who` asks for them.
fn check_terms(provider: &Provider, asked: &EgressRequest, terms: &Terms, who: Who) -> Result<(), Refusal> {
    let facts = &provider.facts;
    let refuse = |reason, found: String| {
        let change = match who {
            Who::Operator => "relax the rule's `require`, or assert what the contract says in the provider's facts",
            Who::JobAuthor => "relax what the job requires, or choose another provider",
        };
        Err(Refusal::new(reason, who, format!("{found} by {:?}", asked.provider), change))
    };
    if let Some(retention_max) = terms.retention {
        if asked.lane == Lane::Batch && retention_max == Retention::ZERO {
            let found = "nothing may be kept, and batches are stored".to_owned();
            return refuse(Reason::BatchKeepsData, found);
        }
        let kept = if asked.lane == Lane::Batch { facts.batch_retention } else { facts.retention };
        match kept {
            Some(kept) if kept <= retention_max => {}
            Some(kept) => {
                return refuse(Reason::Retention, format!("data is kept {kept}, and {retention_max} is required,"));
            }
            None => {
                return refuse(
                    Reason::Retention,
                    format!("how long data is kept is not asserted, and {retention_max} is required,"),
                );
            }
        }
    }
    let within = |region: &String| terms.regions.iter().any(|allowed| is_within(region, allowed));
    if !terms.regions.is_empty() && (facts.regions.is_empty() || !facts.regions.iter().all(within)) {
        let found = match facts.regions.is_empty() {
            true => "where data is computed is not asserted".to_owned(),
            false => format!("data may be computed in {}", facts.regions.join(", ")),
        };
        return refuse(Reason::Region, format!("{found}, and {} is required,", terms.regions.join(" or ")));
    }
    if terms.no_training && facts.trains_on_data != Some(false) {
        return refuse(Reason::Training, "that data is not trained on is not asserted".into());
    }
    if terms.hipaa_baa && facts.hipaa_baa != Some(true) {
        return refuse(Reason::Hipaa, "a business associate agreement is not asserted".into());
    }
    Ok(())
}

/// Whether a region is the allowed one or a part of it: `eu-west-1` is within `eu`, `europe` is not.
fn is_within(region: &str, allowed: &str) -> bool {
    region.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn check_redaction(rule: &Rule, asked: &EgressRequest) -> Result<(), Refusal> {
    if !rule.redact || asked.redacts {
        return Ok(());
    }
    let found = "the rule asks for redaction, and the job does not redact";
    Err(Refusal::new(Reason::Redaction, Who::JobAuthor, found, "say redact = true"))
}

fn check_amounts(rule: &Rule, asked: &EgressRequest) -> Result<(), Refusal> {
    let (most, expected) = (&rule.per_run, &asked.expected);
    let over = |most: Option<u64>, expected: Option<u64>| most.zip(expected).filter(|(most, expected)| expected > most);
    let refuse = |reason, found: String, limit: &str| {
        Err(Refusal::new(reason, Who::Operator, found, format!("raise `per_run.{limit}` of the rule")))
    };
    if let Some((most, expected)) = over(most.rows, expected.rows) {
        return refuse(Reason::RowsPerRun, format!("the run has {expected} rows, and {most} are allowed"), "rows");
    }
    if let Some((most, expected)) = over(most.tokens, expected.tokens) {
        return refuse(
            Reason::TokensPerRun,
            format!("the run has {expected} tokens, and {most} are allowed"),
            "tokens",
        );
    }
    if let Some((most, expected)) = most.usd.zip(expected.usd).filter(|(most, expected)| expected > most) {
        return refuse(Reason::UsdPerRun, format!("the run costs up to {expected}, and {most} is allowed"), "usd");
    }
    Ok(())
}

fn no_rule(asked: &EgressRequest) -> Refusal {
    let found = format!("no rule lets data leave to {:?}", asked.provider);
    Refusal::new(Reason::NoRule, Who::Operator, found, "add one: [[egress.allow]]")
}
