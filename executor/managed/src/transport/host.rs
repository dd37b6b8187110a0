//! Which hosts a transport may connect to. The base URL is the operator's, never a job's; even so, what it resolves to is
//! checked for every connection, and the address that was checked is the one that is connected to. Addresses of the
//! machine's surroundings (link-local, clouds' metadata services) are never connected to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rowmill_jobs::{Error, Result};
use url::{Host, Url};

/// Whose host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A provider's, on the public Internet: TLS, public addresses.
    Provider,
    /// The operator's own: private addresses, too, and those without TLS.
    Own,
}

/// Addresses that may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Public,
    PublicAndPrivate,
    /// Without TLS.
    Private,
}

/// Reads a base URL.
///
/// # Errors
/// It is none, would leave the house without TLS, or names an address that is never connected to.
pub(super) fn base_url(text: &str, place: Place) -> Result<(Url, Reach)> {
    let bad = |why: &str| Error::invalid(format!("the base URL {why}")).hint("for example https://api.openai.com/v1");
    let mut url = Url::parse(text.trim()).map_err(|_| bad("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has more than host and path"));
    }
    let reach = match (url.scheme(), place) {
        ("https", Place::Provider) => Reach::Public,
        ("https", Place::Own) => Reach::PublicAndPrivate,
        ("http", Place::Own) => Reach::Private,
        ("http", Place::Provider) => return Err(bad("would send rows without TLS")),
        _ => return Err(bad("is neither https nor http")),
    };
    // The parser has turned all spellings of an address (octal, one number, mapped) into one of these.
    let address = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(Host::Domain(_)) => None,
        None => return Err(bad("has no host")),
    };
    if address.is_some_and(|address| !may_connect(address, reach)) {
        return Err(bad("names an address that may not be connected to"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok((url, reach))
}

/// Whether an address may be connected to.
pub(super) fn may_connect(address: IpAddr, reach: Reach) -> bool {
    let address = embedded(address);
    let private = is_private(address);
    match reach {
        _ if is_never(address) => false,
        Reach::Public => !private,
        Reach::PublicAndPrivate => true,
        Reach::Private => private,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, or behind NAT64.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return IpAddr::V4(v4);
    }
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => address,
    }
}

/// Metadata services that are not link-local: AWS (IPv6), Alibaba, Azure, Oracle.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

fn is_never(address: IpAddr) -> bool {
    let surroundings = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.is_multicast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified(),
    };
    surroundings || METADATA.contains(&address)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        // 100.64.0.0/10 is shared by customers of a carrier and used inside clusters.
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 0x40)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

/// Resolves names as the system does, and leaves out what may not be connected to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver {
    pub(super) reach: Reach,
}

/// A name has no address that may be connected to.
#[derive(Debug)]
pub(super) struct Unreachable;

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host has no address that may be connected to")
    }
}

impl std::error::Error for Unreachable {}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        Box::pin(async move {
            // The port is the URL's.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = found.filter(|address| may_connect(address.ip(), reach)).collect();
            if addresses.is_empty() {
                return Err(Unreachable.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_reached_over_tls_at_public_addresses() {
        for text in ["https://api.openai.com/v1", "https://api.openai.com/v1/", "https://[2606:4700::1]:8443/x"] {
            let (url, reach) = base_url(text, Place::Provider).unwrap();
            assert_eq!(reach, Reach::Public);
            assert!(!url.as_str().ends_with("v1/"), "{url}");
        }
        for text in [
            "http://api.openai.com/v1",
            "https://user@api.openai.com",
            "https://api.openai.com/v1?key=1",
            "ftp://api.openai.com",
            "api.openai.com",
            "https://127.0.0.1/v1",
            "https://10.0.0.1",
            "https://[::1]",
            "https://[::ffff:10.0.0.1]",
        ] {
            assert!(base_url(text, Place::Provider).is_err(), "{text}");
        }
    }

    #[test]
    fn ones_own_hosts_may_be_private_and_then_without_tls() {
        for text in [
            "http://127.0.0.1:8000/v1",
            "http://10.1.2.3",
            "http://vllm:8000/v1",
            "https://8.8.8.8",
            "http://[fd12::1]",
        ] {
            assert!(base_url(text, Place::Own).is_ok(), "{text}");
        }
        assert!(base_url("http://8.8.8.8", Place::Own).is_err(), "rows would leave without TLS");
    }

    #[test]
    fn the_surroundings_are_never_reached_however_they_are_spelled() {
        for host in [
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "0.0.0.0",
            "[::]",
            "224.0.0.1",
        ] {
            for text in [format!("http://{host}/"), format!("https://{host}/")] {
                assert!(base_url(&text, Place::Own).is_err(), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn names_are_judged_by_their_addresses() {
        for (reach, found) in [(Reach::Public, false), (Reach::Private, true), (Reach::PublicAndPrivate, true)] {
            let resolved = Resolver { reach }.resolve("localhost".parse().unwrap()).await;
            assert_eq!(resolved.is_ok(), found, "{reach:?}");
        }
    }
}
