//! The two text formats of Prometheus, and which of them a scraper wants.

/// How metrics are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Text format 0.0.4: what everything reads.
    Classic,
    OpenMetrics,
}

impl Exposition {
    /// By the `Accept` header (RFC 9110 §12.5.1): OpenMetrics where it is named and wanted at least as much.
    pub fn wanted(accept: Option<&str>) -> Self {
        let mut open_metrics: f32 = 0.0;
        // The most exact range decides about text: `text/plain` before `text/*` before `*/*`.
        let mut text = (0, 0.0);
        for part in accept.unwrap_or("*/*").split(',') {
            let mut parameters = part.split(';').map(str::trim);
            let range = parameters.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parameters
                .find_map(|parameter| parameter.strip_prefix("q=").or(parameter.strip_prefix("Q=")))
                .map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
            let exactness = match range.as_str() {
                "application/openmetrics-text" => {
                    open_metrics = open_metrics.max(quality);
                    continue;
                }
                "text/plain" => 3,
                "text/*" => 2,
                "*/*" => 1,
                _ => continue,
            };
            // The same range twice, as Prometheus has it for other versions of the format: the higher counts.
            if exactness > text.0 || exactness == text.0 && quality > text.1 {
                text = (exactness, quality);
            }
        }
        if open_metrics > 0.0 && open_metrics >= text.1 { Self::OpenMetrics } else { Self::Classic }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Rewrites OpenMetrics as the classic format: a counter's family takes its samples' name, types that are not known
/// there become those that are, units and the end mark go.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.extend([line, "\n"]);
            continue;
        };
        if let Some(rest) = comment.strip_prefix("HELP ") {
            // Its name depends on the type, which comes next.
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = comment.strip_prefix("TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            text.extend(["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_follows_the_accept_header() {
        let check = |accept: Option<&str>, expected| assert_eq!(Exposition::wanted(accept), expected, "{accept:?}");
        check(None, Exposition::Classic);
        check(Some(""), Exposition::Classic);
        check(Some("*/*"), Exposition::Classic);
        check(Some("text/html,*/*;q=0.8"), Exposition::Classic);
        check(Some("application/openmetrics-text"), Exposition::OpenMetrics);
        check(Some("Application/OpenMetrics-Text; version=1.0.0"), Exposition::OpenMetrics);
        check(Some("application/openmetrics-text;q=0"), Exposition::Classic);
        check(Some("application/openmetrics-text;q=x"), Exposition::Classic);
        check(Some("application/openmetrics-text;q=0.3,text/plain;q=0.4"), Exposition::Classic);
        check(Some("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.6"), Exposition::OpenMetrics);
        // As Prometheus 3 asks.
        check(
            Some(
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ),
            Exposition::OpenMetrics,
        );
        check(Some("application/openmetrics-text;q=0.2,text/plain;q=0.1,*/*;q=0.9"), Exposition::OpenMetrics);
    }

    #[test]
    fn the_classic_format_knows_no_units_and_no_end() {
        let open_metrics = "# HELP a_seconds Time spent.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
            a_seconds_total{x=\"# EOF\"} 1.5\n# HELP b Build.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
            # HELP c How many.\n# TYPE c gauge\nc 3\n# HELP d What.\n# TYPE d unknown\nd 4\n# EOF\n";
        let expected = "# HELP a_seconds_total Time spent.\n# TYPE a_seconds_total counter\n\
            a_seconds_total{x=\"# EOF\"} 1.5\n# HELP b_info Build.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
            # HELP c How many.\n# TYPE c gauge\nc 3\n# HELP d What.\n# TYPE d untyped\nd 4\n";
        assert_eq!(classic(open_metrics), expected);
    }
}
