//! What each XID asks for: data, with a version and the source of each row, that an operator can replace.

use std::collections::BTreeMap;
use std::fmt;

/// What an XID asks of the node. In the order of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Response {
    Ignore,
    /// The application's own doing; the GPU is well.
    Application,
    /// Not enough to act on alone.
    Watch,
    DrainThenReset,
    DrainThenReboot,
    DrainThenReplace,
}

impl Response {
    pub const ALL: [Self; 6] = [
        Self::Ignore,
        Self::Application,
        Self::Watch,
        Self::DrainThenReset,
        Self::DrainThenReboot,
        Self::DrainThenReplace,
    ];

    /// The name in policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Application => "application",
            Self::Watch => "watch",
            Self::DrainThenReset => "drain_then_reset",
            Self::DrainThenReboot => "drain_then_reboot",
            Self::DrainThenReplace => "drain_then_replace",
        }
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    version: String,
    responses: BTreeMap<u32, Response>,
}

impl Default for Policy {
    fn default() -> Self {
        Self::parse(include_str!("policy.csv")).expect("the embedded policy is tested to be sound")
    }
}

impl Policy {
    /// Reads lines of CSV: comments with `#`, then `version,TEXT`, then the heading `xid,response,source`, then one row
    /// for each code. The source is for people and must be there.
    pub fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        });
        let end = text.lines().count().max(1);
        let mut next = |expected| lines.next().ok_or(InvalidPolicy { line: end, expected });
        let (line, first) = next("`version,` and a version")?;
        let version = first.strip_prefix("version,").map(str::trim).filter(|version| !version.is_empty());
        let version = version.ok_or(InvalidPolicy { line, expected: "`version,` and a version" })?.to_owned();
        let heading = "the heading `xid,response,source`";
        let (line, columns) = next(heading)?;
        if columns.trim() != "xid,response,source" {
            return Err(InvalidPolicy { line, expected: heading });
        }
        let mut responses = BTreeMap::new();
        for (line, row) in lines {
            let (xid, response) = parse_row(row).map_err(|expected| InvalidPolicy { line, expected })?;
            if responses.insert(xid, response).is_some() {
                return Err(InvalidPolicy { line, expected: "each XID once" });
            }
        }
        Ok(Self { version, responses })
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// A code that the policy does not know is watched.
    pub fn response(&self, xid: u32) -> Response {
        self.responses.get(&xid).copied().unwrap_or(Response::Watch)
    }
}

fn parse_row(row: &str) -> Result<(u32, Response), &'static str> {
    let mut columns = row.splitn(3, ',').map(str::trim);
    let xid = columns.next().and_then(|xid| xid.parse().ok()).ok_or("the number of an XID")?;
    let name = columns.next().unwrap_or_default();
    let response = Response::ALL.into_iter().find(|response| response.name() == name).ok_or(
        "one of ignore, application, watch, drain_then_reset, drain_then_reboot, drain_then_replace after the XID",
    )?;
    columns.next().filter(|source| !source.is_empty()).ok_or("where the row comes from, after the response")?;
    Ok((xid, response))
}

/// A text that is no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}")]
pub struct InvalidPolicy {
    pub line: usize,
    pub expected: &'static str,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_embedded_policy_is_sound() {
        let policy = Policy::default();
        assert_eq!(policy.version(), "2026-11-25.1");
        let check = |xid, response| assert_eq!(policy.response(xid), response, "XID {xid}");
        check(13, Response::Application);
        check(43, Response::Ignore);
        check(48, Response::DrainThenReset);
        check(63, Response::Watch);
        check(64, Response::DrainThenReset);
        check(79, Response::DrainThenReboot);
        check(94, Response::Application);
        check(95, Response::DrainThenReset);
        check(9999, Response::Watch);
    }

    #[test]
    fn a_bad_policy_is_refused_with_its_line() {
        let check = |text: &str, line, expected| {
            let error = Policy::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(error.expected.contains(expected), "{error}");
        };
        check("", 1, "version");
        check("xid,response,source\n", 1, "version");
        check("version, \n", 1, "version");
        check("# why\n\nversion,1\n13,ignore,x\n", 4, "heading");
        check("version,1\nxid,response,source\nmany,ignore,x\n", 3, "number");
        check("version,1\nxid,response,source\n-1,ignore,x\n", 3, "number");
        check("version,1\nxid,response,source\n13,panic,x\n", 3, "one of ignore");
        check("version,1\nxid,response,source\n13,ignore\n", 3, "where the row comes from");
        check("version,1\nxid,response,source\n13,ignore,x\n\n13,watch,y\n", 5, "once");
        let policy = Policy::parse("version,mine\nxid,response,source\n 79 , ignore , seen, and seen again\n").unwrap();
        assert_eq!((policy.version(), policy.response(79)), ("mine", Response::Ignore));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(version,|xid,response,source|watch|[0-9]{0,12}|,|\n|#|\\PC){0,60}") {
            let _any_answer = Policy::parse(&text);
        }

        #[test]
        fn what_is_written_is_what_is_read(rows in prop::collection::btree_map(any::<u32>(), 0..6_usize, 0..40)) {
            let mut text = String::from("version,7\nxid,response,source\n");
            text.extend(rows.iter().map(|(xid, row)| format!("{xid},{},test\n", Response::ALL[*row])));
            let policy = Policy::parse(&text).unwrap();
            for (xid, row) in rows {
                prop_assert_eq!(policy.response(xid), Response::ALL[row]);
            }
        }
    }
}
