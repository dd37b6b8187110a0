//! [`Accounts`]: the providers' accounts of this process: targets as the operator set them up, keys fetched, connections and
//! limits shared by all runs. It decides nothing: whether something may be sent is the policy's.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use rowmill_jobs::allowance::{Allowance, Firmness, Limit, LocalAllowance, RedisAllowance, Resource};
use rowmill_jobs::capability::Capabilities;
use rowmill_jobs::queue::redis_server::RedisServer;
use rowmill_jobs::{Error, Result};
use secrecy::SecretString;
use tokio::sync::Mutex;

use crate::batch::{Folder, Patience};
use crate::lane::Lane;
use crate::pace::Pace;
use crate::policy::config::{self, Batches, Limits, Provider};
use crate::policy::{BaseUrl, Permit, Policy, Storage};
use crate::pricing::{Catalogue, ModelPrice, Prices};
use crate::secrets::SecretRef;
use crate::target::{Auth, Overrides, RateHeaders, Target};
use crate::transport::{
    Authentication, GoogleCredentials, Place, RetryPolicy, Timeouts, Transport, TransportOptions, Windows,
};

/// The field of a request that names the provider's tier.
const TIER_FIELD: &str = "service_tier";
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The accounts.
#[derive(Debug)]
pub struct Accounts {
    policy: Policy,
    prices: Prices,
    redis: Option<Arc<RedisServer>>,
    open: Mutex<Open>,
}

/// What runs share.
#[derive(Debug, Default)]
struct Open {
    /// Connections, by provider alias and model, those of the flex lane and to batches' own hosts apart: what is learned of
    /// limits on the way is one model's.
    transports: HashMap<(String, String, Way), Transport>,
    /// What accounts may use, by provider alias: the operator's limits hold for all of an account's models together.
    allowances: HashMap<String, Arc<dyn Allowance>>,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    /// All that has no other.
    Usual,
    /// The flex lane, which waits for room.
    Flex,
    /// A batch API with a host of its own.
    Batches,
}

impl Way {
    fn of(permit: &Permit, target: &Target) -> Self {
        match permit.lane() {
            Lane::Flex => Self::Flex,
            Lane::Batch if target.batch_url != target.base_url => Self::Batches,
            _ => Self::Usual,
        }
    }
}

impl Accounts {
    /// The accounts of a policy. With a Redis, all processes that use it share an account's limits.
    ///
    /// # Errors
    /// The prices that come with Rowmill cannot be read.
    pub fn new(policy: Policy, redis: Option<Arc<RedisServer>>) -> Result<Self> {
        let prices = policy.prices(Catalogue::built_in()?);
        Ok(Self { policy, prices, redis, open: Mutex::default() })
    }

    /// No accounts: nothing leaves.
    ///
    /// # Errors
    /// As [`Accounts::new`].
    pub fn none() -> Result<Self> {
        Self::new(Policy::none()?, None)
    }

    /// The operator's policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What the model that a permit is for costs.
    ///
    /// # Errors
    /// As [`Accounts::quote`].
    pub fn price(&self, permit: &Permit) -> Result<ModelPrice> {
        self.quote(permit.provider(), permit.model())
    }

    /// What a model costs, whether it may be asked or not.
    ///
    /// # Errors
    /// No price is known, or the policy has no such provider.
    pub fn quote(&self, alias: &str, model: &str) -> Result<ModelPrice> {
        self.policy.price(&self.prices, alias, model)
    }

    /// The model that a permit is for, as the operator set its provider up, and the job its model: the length of its vectors,
    /// and what it can do. The job's word counts more than the operator's, where it has one.
    ///
    /// # Errors
    /// The policy has no such provider, or something in its address is missing.
    pub fn target(
        &self,
        permit: &Permit,
        (dimensions, capabilities): (Option<u32>, &Capabilities),
    ) -> Result<Arc<Target>> {
        let provider = self.provider(permit.provider())?;
        let holes = [("region", &provider.region), ("resource", &provider.resource), ("project", &provider.project)];
        let holes = holes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        let mut overrides = Overrides {
            base_url: provider.base_url.as_ref().map(|base| base.url().to_string()),
            batch_url: provider.batches.base_url.as_ref().map(|base| base.url().to_string()),
            holes: Some(holes.collect::<BTreeMap<_, _>>()),
            dimensions,
            self_hosted: provider.self_hosted.then_some(true),
            ..Overrides::default()
        };
        // Those who know the field keep what they are sent unless they are told not to.
        if permit.storage() == Storage::Forbidden && matches!(provider.kind.as_str(), "openai" | "azure") {
            overrides.body = Some([("store".to_owned(), false.into())].into_iter().collect());
        }
        let overrides = overrides.over(capabilities.into()).over(provider.target.clone());
        let mut target = Target::resolve(provider.kind.as_str(), permit.model(), &overrides)?;
        if permit.lane() == Lane::Flex {
            if target.flex_tier.is_empty() {
                return Err(Error::invalid(format!("provider {} has no flex tier", permit.provider())));
            }
            target.body.insert(TIER_FIELD.to_owned(), target.flex_tier.clone().into());
        }
        Ok(Arc::new(target))
    }

    /// How batches are waited for.
    pub fn patience(&self, permit: &Permit) -> Patience {
        let set = self.batches(permit);
        let ms = |seconds: Option<u32>| seconds.map(|seconds| i64::from(seconds) * 1_000);
        let usual = Patience::default();
        let poll_least_ms = ms(set.look_seconds_min).unwrap_or(usual.poll_least_ms);
        let poll_most_ms = ms(set.look_seconds_max).unwrap_or(usual.poll_most_ms).max(poll_least_ms);
        let rounds_max = set.rounds_max.unwrap_or(usual.rounds_max);
        let cancel_ms = ms(set.cancel_seconds_max).unwrap_or(usual.cancel_ms);
        Patience { poll_least_ms, poll_most_ms, rounds_max, cancel_ms, ..usual }
    }

    /// How batches are cut, by what is known of the provider and by what the operator says.
    pub(crate) fn batch_limits(&self, permit: &Permit, target: &Target) -> crate::batch::Limits {
        let (set, rows) = (self.batches(permit), |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX));
        let rows_min = set.rows_min.map_or(rows(target.batch_requests_min), |rows| rows as usize);
        let known = rows(target.batch_requests_max);
        let rows_max = set.rows_max.map_or(known, |rows| known.min(rows as usize));
        crate::batch::Limits {
            rows_min,
            rows_max,
            bytes_max: usize::try_from(target.batch_bytes_max).unwrap_or(usize::MAX),
        }
    }

    /// The folder through which batches go, if the operator names one.
    pub(crate) fn batch_folder(&self, permit: &Permit) -> Result<Option<Folder>> {
        let set = self.batches(permit);
        let named = set.s3_uri.zip(set.role_arn);
        named.map(|(url, role)| Folder::open(&url, &role)).transpose()
    }

    fn batches(&self, permit: &Permit) -> Batches {
        self.policy.provider(permit.provider()).map_or_else(Batches::default, |provider| provider.batches.clone())
    }

    /// Calls that may be under way at once.
    pub fn concurrency(&self, permit: &Permit) -> usize {
        let limit = self.policy.provider(permit.provider()).and_then(|provider| provider.limits.concurrency);
        limit.map_or(TransportOptions::CONCURRENCY, |limit| limit.max(1) as usize)
    }

    /// How fast a model can be asked online, as far as the operator's limits tell before it is measured.
    pub fn pace(&self, permit: &Permit) -> Pace {
        let limits = self.policy.provider(permit.provider()).map_or_else(Limits::default, |provider| provider.limits);
        Pace::new(limits, self.concurrency(permit))
    }

    /// The connection to a target, opened when it is first asked for.
    ///
    /// # Errors
    /// The key cannot be had, or TLS cannot be set up.
    pub async fn transport(&self, permit: &Permit, target: &Target) -> Result<Transport> {
        let key = (permit.provider().to_owned(), permit.model().to_owned(), Way::of(permit, target));
        let mut open = self.open.lock().await;
        if let Some(transport) = open.transports.get(&key) {
            return Ok(transport.clone());
        }
        let opened = self.connect(permit, target, &mut open.allowances).await;
        let transport = opened.map_err(|error| error.with("provider", permit.provider()))?;
        Ok(open.transports.entry(key).or_insert(transport).clone())
    }

    async fn connect(
        &self,
        permit: &Permit,
        target: &Target,
        allowances: &mut HashMap<String, Arc<dyn Allowance>>,
    ) -> Result<Transport> {
        let provider = self.provider(permit.provider())?;
        // A gateway on this machine needs no TLS. What passes it leaves all the same: rules hold as for any provider.
        let way = Way::of(permit, target);
        let own = provider.batches.base_url.as_ref().filter(|_| way == Way::Batches);
        let is_here = own.or(provider.base_url.as_ref()).is_some_and(BaseUrl::is_loopback);
        let place = if provider.self_hosted || is_here { Place::Own } else { Place::Provider };
        let allowance = match allowances.entry(permit.provider().to_owned()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => Arc::clone(new.insert(self.allowance(permit.provider(), &provider.limits)?)),
        };
        let authentication = authentication(provider, target, place).await?;
        let base_url = if way == Way::Batches { &target.batch_url } else { &target.base_url };
        let mut options = TransportOptions::new(base_url, authentication, allowance);
        options.place = place;
        options.headers = headers(&target.headers)?;
        options.concurrency_max = self.concurrency(permit);
        options.timeouts = timeouts(&provider.timeouts, Timeouts::default());
        if way == Way::Flex {
            (options.timeouts, options.retry) = (timeouts(&provider.timeouts, Timeouts::FLEX), RetryPolicy::FLEX);
        }
        options.windows = match (provider.kind.as_str(), target.rate_headers) {
            ("groq", _) => Windows::GROQ,
            (_, RateHeaders::Together) => Windows::TOGETHER,
            _ => Windows::default(),
        };
        Transport::new(options)
    }

    fn allowance(&self, alias: &str, limits: &Limits) -> Result<Arc<dyn Allowance>> {
        let limits = self::limits(limits);
        Ok(match &self.redis {
            Some(server) => Arc::new(RedisAllowance::new(Arc::clone(server), alias, &limits)?),
            None => Arc::new(LocalAllowance::new(&limits)?),
        })
    }

    fn provider(&self, alias: &str) -> Result<&Provider> {
        self.policy.provider(alias).ok_or_else(|| Error::internal(format!("there is no provider {alias}")))
    }
}

/// The operator's limits as the allowance counts them.
fn limits(limits: &Limits) -> Vec<Limit> {
    let minute = Duration::from_secs(60);
    let named = [
        (Resource::Requests, limits.requests_per_minute, minute),
        (Resource::InputTokens, limits.input_tokens_per_minute, minute),
        (Resource::OutputTokens, limits.output_tokens_per_minute, minute),
        (Resource::Requests, limits.requests_per_day, DAY),
        (Resource::InputTokens, limits.input_tokens_per_day, DAY),
        (Resource::OutputTokens, limits.output_tokens_per_day, DAY),
    ];
    let set = named.into_iter().filter_map(|(resource, amount, window)| Some((resource, amount?, window)));
    set.map(|(resource, amount, window)| Limit { resource, amount, window, firmness: Firmness::Firm }).collect()
}

/// The operator's timeouts, and the usual ones where there are none.
fn timeouts(set: &config::Timeouts, usual: Timeouts) -> Timeouts {
    let seconds = |set: Option<u32>, usual: Duration| set.map_or(usual, |seconds| Duration::from_secs(seconds.into()));
    Timeouts {
        idle: seconds(set.idle_seconds, usual.idle),
        attempt: seconds(set.attempt_seconds, usual.attempt),
        ..usual
    }
}

async fn authentication(provider: &Provider, target: &Target, place: Place) -> Result<Authentication> {
    let usual = (!target.key_env.is_empty()).then(|| SecretRef::Env(target.key_env.clone()));
    let key = match (&provider.secret, usual) {
        (Some(secret), _) => Some(secret.resolve().await?),
        (None, Some(usual)) if target.key_needed => Some(usual.resolve().await?),
        (None, _) => None,
    };
    let region = || provider.region.clone().unwrap_or_default();
    Ok(match (target.auth, key) {
        // Bedrock is opened with the machine's AWS credentials, unless it has a key of its own.
        (Auth::Sigv4, None) => Authentication::AwsSignature { region: region(), service: "bedrock".into() },
        (Auth::Sigv4 | Auth::Bearer, Some(key)) => Authentication::Bearer(key),
        (Auth::XApiKey, Some(key)) => Authentication::XApiKey(key),
        (Auth::ApiKey, Some(key)) => Authentication::ApiKey(key),
        (Auth::XGoogApiKey, Some(key)) => Authentication::GoogleApiKey(key),
        (Auth::GoogleOauth, Some(key)) => google(&key, place)?,
        (Auth::None, _) => Authentication::None,
        (_, None) if target.key_needed => {
            return Err(Error::invalid("the provider needs a key").hint("name it in rowmill.toml: secret = \"env:…\""));
        }
        (_, None) => Authentication::None,
    })
}

fn google(key: &SecretString, place: Place) -> Result<Authentication> {
    Ok(Authentication::Google(Arc::new(GoogleCredentials::parse(key, place)?)))
}

fn headers(named: &BTreeMap<String, String>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in named {
        let wrong = || Error::invalid(format!("`{name}` is no header"));
        let name = HeaderName::try_from(name.as_str()).map_err(|_| wrong())?;
        headers.insert(name, HeaderValue::try_from(value.as_str()).map_err(|_| wrong())?);
    }
    Ok(headers)
}
