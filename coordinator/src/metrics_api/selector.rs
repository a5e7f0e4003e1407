//! `labelSelector`, `fieldSelector` and `metricLabelSelector` of a request, as API servers read them.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{Expression, Selector, SelectorExt};

/// What a list is narrowed down to.
#[derive(Debug, Default)]
pub(super) struct Narrowing {
    labels: Selector,
    /// Of the metric itself, of which ours have none.
    metric_labels: Selector,
    /// `metadata.name` and `metadata.namespace`, and whether it must be that or must not.
    fields: Vec<(Field, bool, String)>,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Name,
    Namespace,
}

impl Narrowing {
    /// Of a request's query; an error says what is not understood.
    pub(super) fn of(query: &str) -> Result<Self, String> {
        let mut narrowing = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "labelSelector" => narrowing.labels = labels(&value)?,
                "metricLabelSelector" => narrowing.metric_labels = labels(&value)?,
                "fieldSelector" => narrowing.fields = fields(&value)?,
                "watch" if matches!(&*value, "true" | "1") => {
                    return Err("metrics cannot be watched: ask again for newer ones".into());
                }
                // Pages, timeouts, resource versions: a list is always whole and of now.
                _ => {}
            }
        }
        Ok(narrowing)
    }

    pub(super) fn matches(&self, namespace: &str, name: &str, of: &BTreeMap<String, String>) -> bool {
        let is_so = |(field, equal, value): &(Field, bool, String)| {
            let is = match field {
                Field::Name => name,
                Field::Namespace => namespace,
            };
            (is == value) == *equal
        };
        self.fields.iter().all(is_so) && self.labels.matches(of) && self.metric_labels.matches(&BTreeMap::new())
    }
}

fn fields(text: &str) -> Result<Vec<(Field, bool, String)>, String> {
    let field = |term: &str| {
        let (key, equal, value) = match (term.split_once("!="), term.split_once("=")) {
            (Some((key, value)), _) => (key, false, value),
            (None, Some((key, value))) => (key, true, value.trim_start_matches('=')),
            (None, None) => return Err(format!("field selector {term:?}: expected KEY=VALUE or KEY!=VALUE")),
        };
        let field = match key.trim() {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            other => return Err(format!("field {other:?} is not known: expected metadata.name or metadata.namespace")),
        };
        Ok((field, equal, value.trim().to_owned()))
    };
    text.split(',').filter(|term| !term.trim().is_empty()).map(field).collect()
}

/// `a=b, a==b, a!=b, a in (b, c), a notin (b), a, !a`, all of which must hold.
fn labels(text: &str) -> Result<Selector, String> {
    let mut selector = Selector::default();
    for term in terms(text) {
        let term = term.trim();
        if !term.is_empty() {
            selector.extend(requirement(term).ok_or_else(|| format!("label selector {term:?} is not understood"))?);
        }
    }
    Ok(selector)
}

/// Between commas that are in no parentheses.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
}

fn requirement(term: &str) -> Option<Expression> {
    if let Some((key, values)) = term.split_once('(') {
        let values: BTreeSet<_> = values.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, operator) = key.trim().rsplit_once(char::is_whitespace)?;
        let key = self::key(key)?;
        return match operator {
            "in" => Some(Expression::In(key, values)),
            "notin" => Some(Expression::NotIn(key, values)),
            _ => None,
        };
    }
    if let Some((key, value)) = term.split_once("!=") {
        return Some(Expression::NotEqual(self::key(key)?, self::value(value)?));
    }
    if let Some((key, value)) = term.split_once('=') {
        return Some(Expression::Equal(self::key(key)?, self::value(value.strip_prefix('=').unwrap_or(value))?));
    }
    match term.strip_prefix('!') {
        Some(key) => Some(Expression::DoesNotExist(self::key(key)?)),
        None => Some(Expression::Exists(key(term)?)),
    }
}

fn key(text: &str) -> Option<String> {
    value(text).filter(|key| !key.is_empty())
}

fn value(text: &str) -> Option<String> {
    let text = text.trim();
    let is_of_one = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
    text.chars().all(is_of_one).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(query: &str) -> Vec<&'static str> {
        let pods = [("a", "app=ray,tier=head"), ("b", "app=ray"), ("c", "app=web"), ("d", "")];
        let query: String =
            form_urlencoded::Serializer::new(String::new()).append_pair("labelSelector", query).finish();
        let narrowing = Narrowing::of(&query).unwrap();
        let matches = |labels: &str| {
            let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
            narrowing.matches("ml", "p", &pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
        };
        pods.into_iter().filter(|(_, labels)| matches(labels)).map(|(name, _)| name).collect()
    }

    #[test]
    fn labels_are_selected_as_by_an_api_server() {
        let check = |selector, expected: &[&str]| assert_eq!(selects(selector), expected, "{selector}");
        check("", &["a", "b", "c", "d"]);
        check("app=ray", &["a", "b"]);
        check("app==ray,tier!=head", &["b"]);
        check("app!=ray", &["c", "d"]);
        check("app in (ray, web),!tier", &["b", "c"]);
        check("app notin (ray)", &["c", "d"]);
        check("tier", &["a"]);
        check("! tier , app", &["b", "c"]);
    }

    #[test]
    fn fields_are_names_and_namespaces() {
        let check = |query: &str, name, expected| {
            assert_eq!(Narrowing::of(query).unwrap().matches("ml", name, &BTreeMap::new()), expected, "{query} {name}");
        };
        check("fieldSelector=metadata.name%3Da", "a", true);
        check("fieldSelector=metadata.name%3Da", "b", false);
        check("fieldSelector=metadata.name!%3Da,metadata.namespace%3D%3Dml", "b", true);
        check("fieldSelector=metadata.namespace!%3Dml", "a", false);
        check("limit=500&resourceVersion=0", "a", true);
    }

    #[test]
    fn a_metric_has_no_labels_to_be_selected_by() {
        let check = |query: &str, expected| {
            assert_eq!(Narrowing::of(query).unwrap().matches("ml", "a", &BTreeMap::new()), expected, "{query}");
        };
        check("metricLabelSelector=", true);
        check("metricLabelSelector=gpu%3D0", false);
        check("metricLabelSelector=!gpu", true);
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let check = |query: &str, expected: &str| {
            let error = Narrowing::of(query).unwrap_err();
            assert!(error.contains(expected), "{query}: {error}");
        };
        check("labelSelector=a%20near%20(b)", "\"a near (b)\"");
        check("labelSelector=%3Db", "\"=b\"");
        check("labelSelector=a%20in%20(b", "\"a in (b\"");
        check("labelSelector=a+b", "\"a b\"");
        check("fieldSelector=spec.nodeName%3Da", "spec.nodeName");
        check("watch=true", "cannot be watched");
    }
}
