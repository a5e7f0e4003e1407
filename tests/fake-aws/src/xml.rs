//! The Query protocol's answers: XML in which a structure's fields are elements and a list's items are `member`s.

use serde_json::Value;

use crate::error::ApiError;

const AUTO_SCALING: &str = "http://autoscaling.amazonaws.com/doc/2011-01-01/";
const EC2: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

/// The answer to a call that went well. `Null` stands for an action that answers nothing but its request id.
pub(crate) fn answer(service: &str, action: &str, result: &Value, request_id: &str) -> String {
    let mut out = String::new();
    if service == "ec2" {
        // EC2's form is its own: no wrapper around the result.
        out += &format!(r#"<{action}Response xmlns="{EC2}">"#);
        element(&mut out, "requestId", &request_id.into());
        for (name, value) in result.as_object().into_iter().flatten() {
            element(&mut out, name, value);
        }
    } else {
        out += &format!(r#"<{action}Response xmlns="{AUTO_SCALING}">"#);
        element(&mut out, &format!("{action}Result"), result);
        out += &format!("<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>");
    }
    out + &format!("</{action}Response>")
}

pub(crate) fn error(service: &str, error: &ApiError, request_id: &str) -> String {
    let (code, message) = (escape(&error.code), escape(&error.message));
    if service == "ec2" {
        return format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
             <RequestID>{request_id}</RequestID></Response>"
        );
    }
    let blame = if error.status >= 500 { "Receiver" } else { "Sender" };
    format!(
        r#"<ErrorResponse xmlns="{AUTO_SCALING}"><Error><Type>{blame}</Type><Code>{code}</Code><Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"#
    )
}

fn element(out: &mut String, name: &str, value: &Value) {
    if value.is_null() {
        return;
    }
    *out += &format!("<{name}>");
    match value {
        Value::Array(items) => items.iter().for_each(|item| element(out, "member", item)),
        Value::Object(fields) => fields.iter().for_each(|(name, field)| element(out, name, field)),
        Value::String(text) => *out += &escape(text),
        other => *out += &other.to_string(),
    }
    *out += &format!("</{name}>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_elements_and_items_are_members() {
        let result = json!({"Groups": [{"Name": "a<b", "Size": 2, "Gone": null}], "None": [], "Yes": true});
        let xml = answer("autoscaling", "Describe", &result, "r-1");
        let inner = "<Groups><member><Name>a&lt;b</Name><Size>2</Size></member></Groups><None></None><Yes>true</Yes>";
        assert!(xml.contains(&format!("<DescribeResult>{inner}</DescribeResult>")), "{xml}");
        assert!(xml.ends_with("<ResponseMetadata><RequestId>r-1</RequestId></ResponseMetadata></DescribeResponse>"));
        assert!(!answer("autoscaling", "Set", &Value::Null, "r-1").contains("Result"));
    }

    #[test]
    fn errors_say_whose_fault_it_is() {
        let ours = error("autoscaling", &ApiError::new("InternalFailure", "no"), "r-1");
        assert!(ours.contains("<Type>Receiver</Type><Code>InternalFailure</Code><Message>no</Message>"), "{ours}");
        let theirs = error("autoscaling", &ApiError::validation("a & b"), "r-1");
        assert!(theirs.contains("<Type>Sender</Type><Code>ValidationError</Code><Message>a &amp; b</Message>"));
    }
}
