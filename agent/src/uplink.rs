//! Tells the coordinator what the node is doing, over one gRPC stream.

use std::net::IpAddr;
use std::str::FromStr;

use tonic::transport::Uri;

/// Where the coordinator is. Encrypted, or on this machine: a token is never sent in the clear over a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorUrl(Uri);

impl FromStr for CoordinatorUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected https://HOST:PORT (http:// only for an address of loopback)";
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let host = uri.host().ok_or(EXPECTED)?;
        let loopback = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match uri.scheme_str() {
            Some("https") => Ok(Self(uri)),
            Some("http") if loopback => Ok(Self(uri)),
            _ => Err(EXPECTED),
        }
    }
}
