//! What a call is refused with, as AWS says it: a code, a message and an HTTP status.

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code} ({status}): {message}")]
pub struct ApiError {
    pub code: String,
    pub message: String,
    pub status: u16,
}

impl ApiError {
    /// With the status that AWS documents for the code; 400 for those that it does not know.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let status = match code {
            "AccessDenied" | "ExpiredToken" | "InvalidClientTokenId" | "MissingAuthenticationToken" => 403,
            "NotAuthorized" | "OptInRequired" | "SignatureDoesNotMatch" => 403,
            "InternalFailure" | "InternalError" | "ResourceContention" => 500,
            "ServiceUnavailable" => 503,
            _ => 400,
        };
        Self { code: code.to_owned(), message: message.into(), status }
    }

    pub fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationError", message)
    }

    /// AWS's own form for a value that breaks a constraint of its model.
    pub(crate) fn constraint(value: Option<&str>, parameter: &str, constraint: &str) -> Self {
        let mut name = parameter.to_owned();
        if let Some(first) = name.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        let value = value.map_or("null".to_owned(), |value| format!("'{value}'"));
        Self::validation(format!(
            "1 validation error detected: Value {value} at '{name}' failed to satisfy constraint: {constraint}"
        ))
    }
}
