//! [`RedisServer`]: where Redis is and how it is reached: alone, over TLS, or found by its Sentinels. Messages name the
//! host, never the password. It refuses Redis Cluster, and plain text to other machines unless told otherwise.

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, RedisConnectionInfo, RedisError, TlsMode};
use tokio::sync::{Mutex, OnceCell};
use url::Url;

use crate::{Error, Kind, Result};

/// Longest a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest an answer may take. redis-rs itself gives up after half a second, which any fork of the server exceeds.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Whether Redis on another machine may be reached without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plaintext {
    /// Only on this machine.
    Refused,
    /// The operator says that the network is private.
    Allowed,
}

/// A Redis.
pub struct RedisServer {
    /// For messages: no password.
    name: String,
    target: Target,
    checked: OnceCell<()>,
}

enum Target {
    Single(Box<Client>),
    Sentinels(Box<Mutex<SentinelClient>>),
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RedisServer {
    /// The Redis that a URL names: `redis://`, `rediss://` (TLS), or `redis+sentinel://host:26379,host:26379/master` and
    /// `rediss+sentinel://`. Opens no connection yet.
    ///
    /// # Errors
    /// The URL is none, or plain text would leave this machine.
    pub fn new(url: &str, plaintext: Plaintext) -> Result<Self> {
        let bad = || {
            Error::new(Kind::Usage, "the Redis URL is none").hint(
                "for example redis://localhost:6379, rediss://user:password@host:6380 or \
                 redis+sentinel://host:26379,host:26379/mymaster",
            )
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        // Everything between the scheme and the last '@' is secret.
        let name = format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place));
        let hosts = rest.rsplit_once('@').map_or(rest, |(_, place)| place).split('/').next().unwrap_or_default();
        let encrypted = scheme.starts_with("rediss");
        if !encrypted && plaintext == Plaintext::Refused && !hosts.split(',').all(is_here) {
            return Err(Error::new(Kind::Usage, format!("{name} would be reached without TLS"))
                .hint("use rediss://, or --redis-plaintext (ROWMILL_REDIS_PLAINTEXT=true) on a private network"));
        }
        if encrypted {
            // Two are compiled in, so that somebody has to choose. An earlier choice is as good.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let target = match scheme {
            "redis" | "rediss" => Target::Single(Box::new(Client::open(url).map_err(|_| bad())?)),
            "redis+sentinel" | "rediss+sentinel" => {
                let tls = encrypted.then_some(TlsMode::Secure);
                Target::Sentinels(Box::new(Mutex::new(sentinels(rest, tls).ok_or_else(bad)?)))
            }
            _ => return Err(bad()),
        };
        Ok(Self { name, target, checked: OnceCell::new() })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A new connection. The first one looks whether the server is one that can be used.
    ///
    /// # Errors
    /// The server does not answer, or is none that can be used.
    pub async fn connect(&self) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let connected = match &self.target {
            Target::Single(client) => client.get_multiplexed_async_connection_with_config(&config).await,
            Target::Sentinels(client) => client.lock().await.get_async_connection_with_config(&config).await,
        };
        let connection = connected.map_err(|error| self.failed("reach", error))?;
        self.checked.get_or_try_init(|| self.check(connection.clone())).await?;
        Ok(connection)
    }

    /// Looks what kind of server it is. A server that does not tell is believed to be right.
    async fn check(&self, mut connection: MultiplexedConnection) -> Result<()> {
        let asked: redis::RedisResult<String> = redis::cmd("INFO").query_async(&mut connection).await;
        let info = match asked {
            Ok(info) => info,
            Err(error) if error.is_io_error() => return Err(self.failed("ask", error)),
            Err(_) => return Ok(()),
        };
        let fact = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        if fact("cluster_enabled") == Some("1") {
            return Err(Error::invalid(format!("{} is a Redis Cluster", self.name)).hint(
                "a queue's scripts touch many keys at once, which a Cluster spreads over machines: use one Redis, with \
                 Sentinel if it has to be highly available",
            ));
        }
        if let Some(policy) = fact("maxmemory_policy").filter(|policy| *policy != "noeviction") {
            tracing::warn!(
                server = self.name,
                policy,
                "Redis may drop jobs when it is full; set maxmemory-policy noeviction"
            );
        }
        Ok(())
    }

    /// What an error of Redis means for whoever asked.
    pub(crate) fn failed(&self, action: &str, error: RedisError) -> Error {
        use redis::{ErrorKind, ServerErrorKind};
        let message = format!("cannot {action} Redis at {}", self.name);
        let (kind, hint) = match error.kind() {
            ErrorKind::AuthenticationFailed => (Kind::Invalid, "check user and password in the Redis URL"),
            ErrorKind::InvalidClientConfig => (Kind::Invalid, "check the Redis URL"),
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                (Kind::Invalid, "the Redis user lacks rights; infra/README.md has the ACL it needs")
            }
            _ if error.code() == Some("NOAUTH") || error.code() == Some("WRONGPASS") => {
                (Kind::Invalid, "check user and password in the Redis URL")
            }
            // As rustls words it, whatever the client wraps it in.
            _ if error.to_string().contains("invalid peer certificate") => (
                Kind::Invalid,
                "its certificate must name this host and be of a CA in the system's store or SSL_CERT_FILE",
            ),
            _ => (Kind::Temporary, "check that Redis runs and can be reached from here"),
        };
        Error::new(kind, message).caused_by(error).hint(hint)
    }
}

/// Whether a `host:port` is this machine.
fn is_here(host: &str) -> bool {
    let Ok(url) = Url::parse(&format!("redis://{host}")) else { return false };
    match url.host() {
        // Not a scheme that the parser knows, so even an address is a domain to it.
        Some(url::Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        }
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// A client for `[user:password@]host:port,host:port/master[/db]`. User and password are the server's.
fn sentinels(rest: &str, tls: Option<TlsMode>) -> Option<SentinelClient> {
    let (secret, place) = rest.rsplit_once('@').map_or((None, rest), |(secret, place)| (Some(secret), place));
    let mut parts = place.splitn(3, '/');
    let hosts = parts.next()?;
    let master = parts.next().filter(|master| !master.is_empty())?;
    let mut settings = RedisConnectionInfo::default();
    if let Some(db) = parts.next() {
        settings = settings.set_db(db.parse().ok()?);
    }
    if let Some(secret) = secret {
        // The parser undoes percent-encoding.
        let url = redis::parse_redis_url(&format!("redis://{secret}@host"))?;
        let decoded = redis::IntoConnectionInfo::into_connection_info(url).ok()?;
        if let Some(user) = decoded.redis_settings().username() {
            settings = settings.set_username(user);
        }
        if let Some(password) = decoded.redis_settings().password() {
            settings = settings.set_password(password);
        }
    }
    let scheme = if tls.is_some() { "rediss" } else { "redis" };
    let nodes: Vec<String> = hosts.split(',').map(|host| format!("{scheme}://{host}/")).collect();
    let mut node = SentinelNodeConnectionInfo::default().set_redis_connection_info(settings);
    if let Some(tls) = tls {
        node = node.set_tls_mode(tls);
    }
    SentinelClient::build(nodes, master, Some(node), SentinelServerType::Master).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_on_this_machine() {
        for url in ["redis://127.0.0.1:6379", "redis://localhost", "redis://[::1]:7/1", "rediss://redis.example:6380"] {
            assert!(RedisServer::new(url, Plaintext::Refused).is_ok(), "{url}");
        }
        for url in ["redis://redis:6379", "redis://10.0.0.1", "redis+sentinel://localhost:1,b:2/m"] {
            let refused = RedisServer::new(url, Plaintext::Refused).unwrap_err();
            assert!(refused.report().contains("--redis-plaintext"), "{url}");
            assert!(RedisServer::new(url, Plaintext::Allowed).is_ok(), "{url}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let server = RedisServer::new("rediss://me:p%40ss@host:1/0", Plaintext::Refused).unwrap();
        assert_eq!(server.name(), "rediss://host:1/0");
        assert!(!format!("{server:?}").contains("ss@"));
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for url in
            ["localhost:6379", "http://localhost", "redis+sentinel://localhost:1", "redis+sentinel://localhost:1/"]
        {
            assert_eq!(RedisServer::new(url, Plaintext::Allowed).unwrap_err().kind(), Kind::Usage, "{url}");
        }
        assert!(RedisServer::new("rediss+sentinel://u:p@a:1,b:2/main/3", Plaintext::Refused).is_ok());
    }
}
