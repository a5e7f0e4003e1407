/// An error with its causes, on one line. Some libraries' errors say their causes themselves: once is enough.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Error {
        #[error("read /proc/stat")]
        Silent(#[source] std::io::Error),
        #[error("read /proc/stat: {0}")]
        Telling(#[source] std::io::Error),
    }

    #[test]
    fn a_cause_is_said_once() {
        let io = || std::io::Error::other("refused");
        assert_eq!(chain(&Error::Silent(io())), "read /proc/stat: refused");
        assert_eq!(chain(&Error::Telling(io())), "read /proc/stat: refused");
    }
}
