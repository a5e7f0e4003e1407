//! Where the coordinator is. Encrypted, or on this machine: a token is never sent in the clear over a network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use tonic::transport::Uri;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorUrl(Uri);

impl CoordinatorUrl {
    pub fn uri(&self) -> &Uri {
        &self.0
    }

    /// Of something else that it serves, with its path.
    pub fn beside(&self, path: &str) -> String {
        format!("{}{path}", self.to_string().trim_end_matches('/'))
    }

    pub fn is_encrypted(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

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

impl fmt::Display for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_reached_in_the_clear() {
        for text in ["https://ebb-coordinator.ebb.svc:9483", "http://127.0.0.1:9483", "http://[::1]:9483"] {
            assert!(text.parse::<CoordinatorUrl>().is_ok(), "{text}");
        }
        for text in [
            "http://ebb-coordinator:9483",
            "http://10.0.0.1:1",
            "http://localhost.evil.example",
            "ebb:9483",
            "ftp://x",
            "",
        ] {
            assert!(text.parse::<CoordinatorUrl>().is_err(), "{text}");
        }
    }
}
