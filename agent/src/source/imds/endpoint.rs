//! Where the instance metadata service is.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

/// Plain HTTP, as the service has it: it answers on a link-local address, which no router passes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
}

/// The service's address on every instance.
impl Default for Endpoint {
    fn default() -> Self {
        Self { host: "169.254.169.254".to_owned(), port: 80 }
    }
}

impl Endpoint {
    /// As in the header `Host`.
    pub(super) fn authority(&self) -> String {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        let port = if self.port == 80 { String::new() } else { format!(":{}", self.port) };
        format!("{open}{}{close}{port}", self.host)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

/// An endpoint, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImdsArg {
    Endpoint(Endpoint),
    None,
}

impl FromStr for ImdsArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected http://HOST or http://HOST:PORT, or `none`";
        if text == "none" {
            return Ok(Self::None);
        }
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let host = uri.host().map(|host| host.trim_matches(['[', ']'])).filter(|host| !host.is_empty());
        match (uri.scheme_str(), host, uri.path_and_query().map_or("", |path| path.as_str())) {
            (Some("http"), Some(host), "" | "/") => {
                Ok(Self::Endpoint(Endpoint { host: host.to_owned(), port: uri.port_u16().unwrap_or(80) }))
            }
            _ => Err(EXPECTED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_that_is_reached_in_the_clear_or_none() {
        let check = |text: &str, expected: &str| match text.parse() {
            Ok(ImdsArg::Endpoint(endpoint)) => assert_eq!(endpoint.to_string(), expected),
            other => panic!("{text}: {other:?}"),
        };
        check("http://169.254.169.254", "http://169.254.169.254");
        check("http://169.254.169.254:80/", "http://169.254.169.254");
        check("http://[fd00:ec2::254]", "http://[fd00:ec2::254]");
        check("http://127.0.0.1:1338", "http://127.0.0.1:1338");
        assert_eq!(Endpoint::default().to_string(), "http://169.254.169.254");
        assert_eq!("none".parse(), Ok(ImdsArg::None));
        for text in
            ["", "None", "169.254.169.254", "https://169.254.169.254", "http://", "http://a/latest", "http://a?b"]
        {
            assert!(text.parse::<ImdsArg>().is_err(), "{text}");
        }
    }
}
