//! The Query protocol's requests: form-encoded pairs whose names are paths, `Filters.member.1.Values.member.2=x`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::ApiError;

/// The parameters of a call, or those below a path of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    pub fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.text(name).ok_or_else(|| ApiError::constraint(None, name, "Member must not be null"))
    }

    pub fn number(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(number) if number < 0 => {
                Err(ApiError::constraint(Some(text), name, "Member must have value greater than or equal to 0"))
            }
            Ok(number) => Ok(Some(u32::try_from(number).unwrap_or(u32::MAX))),
            Err(_) => Err(ApiError::new("MalformedInput", format!("{name}={text} is not a number"))),
        }
    }

    pub fn required_number(&self, name: &str) -> Result<u32, ApiError> {
        self.required(name)?;
        Ok(self.number(name)?.unwrap_or_default())
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.text(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(text) => Err(ApiError::new("MalformedInput", format!("{name}={text} is neither true nor false"))),
        }
    }

    /// The strings of a list; none where the list is not given.
    pub fn texts(&self, name: &str) -> Vec<String> {
        self.structures(name).into_iter().filter_map(|mut member| member.take("")).collect()
    }

    /// The structures of a list, in the order of their numbers.
    pub fn structures(&self, name: &str) -> Vec<Self> {
        self.within(name).within("member").numbered()
    }

    /// Everything below a path as it was given: structures, lists and strings. `Null` where there is nothing.
    pub fn tree(&self, name: &str) -> Value {
        self.within(name).to_value()
    }

    fn to_value(&self) -> Value {
        if let Some(text) = self.text("") {
            return text.into();
        }
        let mut fields = self.children();
        if let Some(members) = fields.remove("member") {
            return members.numbered().iter().map(Self::to_value).collect();
        }
        if fields.is_empty() {
            return Value::Null;
        }
        fields.iter().map(|(name, field)| (name.clone(), field.to_value())).collect()
    }

    fn within(&self, name: &str) -> Self {
        self.children().remove(name).unwrap_or_default()
    }

    fn numbered(&self) -> Vec<Self> {
        let numbered = self.children().into_iter().filter_map(|(number, child)| Some((number.parse().ok()?, child)));
        numbered.collect::<BTreeMap<u32, Self>>().into_values().collect()
    }

    /// What lies below each first step of the paths; the value of a path that ends there is called "".
    fn children(&self) -> BTreeMap<String, Self> {
        let mut children = BTreeMap::<String, Self>::new();
        for (path, value) in &self.0 {
            let (step, rest) = path.split_once('.').unwrap_or((path, ""));
            children.entry(step.to_owned()).or_default().0.insert(rest.to_owned(), value.clone());
        }
        children
    }

    /// As it is logged.
    pub(crate) fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Params {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_read_in_the_order_of_their_numbers() {
        let names = (1..=11).map(|number| format!("Names.member.{number}=n{number}")).collect::<Vec<_>>().join("&");
        let params = Params::parse(names.as_bytes());
        assert_eq!(params.texts("Names")[..2], ["n1", "n2"]);
        assert_eq!(params.texts("Names")[10], "n11");
        assert_eq!(params.texts("Other"), [""; 0]);
        assert_eq!(Params::parse(b"Names=").texts("Names"), [""; 0], "an empty list, as the SDK writes it");
    }

    #[test]
    fn structures_hold_lists_and_escapes_are_undone() {
        let body =
            b"Filters.member.1.Name=tag%3Aa&Filters.member.1.Values.member.1=b+c&Filters.member.1.Values.member.2=d";
        let filters = Params::parse(body).structures("Filters");
        assert_eq!(filters.len(), 1);
        assert_eq!(filters[0].text("Name"), Some("tag:a"));
        assert_eq!(filters[0].texts("Values"), ["b c", "d"]);
    }

    #[test]
    fn a_tree_keeps_what_was_given() {
        let params = Params::parse(b"P.A.B=1&P.A.L.member.1.T=x&P.A.L.member.2.T=y&Q=2");
        assert_eq!(params.tree("P"), json!({"A": {"B": "1", "L": [{"T": "x"}, {"T": "y"}]}}));
        assert_eq!(params.tree("R"), Value::Null);
    }

    #[test]
    fn what_is_missing_or_malformed_is_said_as_aws_says_it() {
        let params = Params::parse(b"DesiredCapacity=many&MinSize=-1&Flag=maybe");
        let missing = params.required("AutoScalingGroupName").unwrap_err();
        let expected = "1 validation error detected: Value null at 'autoScalingGroupName' failed to satisfy constraint: \
                        Member must not be null";
        assert_eq!((missing.code.as_str(), missing.message.as_str()), ("ValidationError", expected));
        assert_eq!(params.number("DesiredCapacity").unwrap_err().code, "MalformedInput");
        assert_eq!(params.number("MinSize").unwrap_err().code, "ValidationError");
        assert_eq!(params.flag("Flag").unwrap_err().code, "MalformedInput");
    }
}
