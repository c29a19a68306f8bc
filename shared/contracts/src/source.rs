//! The operators that other systems' events belong to.

use std::{collections::HashMap, str::FromStr};

use crate::OperatorId;

/// The operators of the `source`s of other systems, as the environment configures them.
///
/// Its text form is `source=operatorId`, several of them separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceOperators(HashMap<String, OperatorId>);

impl SourceOperators {
    /// Returns the operator that owns what a source sends on the bus. A source that is not configured belongs to the
    /// default operator.
    #[must_use]
    pub fn operator(&self, source: &str) -> OperatorId {
        self.configured(source).unwrap_or_default()
    }

    /// Returns the operator of a source, if it is configured.
    #[must_use]
    pub fn configured(&self, source: &str) -> Option<OperatorId> {
        self.0.get(source).copied()
    }
}

impl FromStr for SourceOperators {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut operators = HashMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let parsed = pair.split_once('=').and_then(|(source, operator)| {
                Some((source.trim(), operator.trim().parse().ok()?)).filter(|it| !it.0.is_empty())
            });
            let (source, operator) =
                parsed.ok_or_else(|| format!("has {pair:?}; give <source>=<operatorId>"))?;
            if operators.insert(source.to_owned(), operator).is_some() {
                return Err(format!("has the source {source:?} twice"));
            }
        }
        Ok(Self(operators))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_of_sources_are_parsed() {
        let (a, b) = (OperatorId::registered("a"), OperatorId::registered("b"));
        let operators: SourceOperators =
            format!("acme.one={a}, acme.two={b}").parse().expect("valid");
        assert_eq!([operators.operator("acme.one"), operators.operator("acme.two")], [a, b]);
        assert_eq!(operators.operator("acme"), OperatorId::DEFAULT);
        assert_eq!(
            (operators.configured("acme.one"), operators.configured("acme")),
            (Some(a), None)
        );
        assert_eq!("".parse(), Ok(SourceOperators::default()));
        for wrong in
            ["acme.one", "acme.one=", &format!("={a}"), &format!("x={a},x={b}"), "x=default"]
        {
            assert!(wrong.parse::<SourceOperators>().is_err(), "{wrong}");
        }
    }
}
