//! Which requests are told of, and how much: the `Policy` of `audit.k8s.io/v1`. The first rule that matches decides.

use serde::Deserialize;
use serde_json::Value;

use crate::auth::User;
use crate::http::info::RequestInfo;

/// How much is told of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who asked for what when, and how it ended.
    Metadata,
    /// Also what was sent.
    Request,
    /// Also what was answered.
    RequestResponse,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Stage {
    RequestReceived,
    /// Of requests that last.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    /// A rule must say it: to be silent by oversight is what an audit is not for.
    level: Option<Level>,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// A policy as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

/// What is told of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy, and refuses one that can't be meant. Upstream's checks.
    pub fn read(policy: Value) -> Result<Self, String> {
        let version = policy["apiVersion"].as_str().unwrap_or("");
        if version != "audit.k8s.io/v1" {
            return Err(format!("unknown group version field {version:?} in policy"));
        }
        let policy: Self = serde_json::from_value(policy).map_err(|e| e.to_string())?;
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_owned());
        }
        policy.rules.iter().enumerate().try_for_each(|(i, rule)| rule.check().map_err(|why| format!("rules[{i}].{why}")))?;
        Ok(policy)
    }

    /// What is to be told of a request. `user` is who asks, where that is known.
    pub fn judge(&self, user: Option<&User>, info: &RequestInfo) -> Judgement {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, info)) else { return Judgement::default() };
        Judgement {
            level: rule.level.unwrap_or_default(),
            omit_stages: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

fn empty_or(list: &[String], holds: impl Fn(&String) -> bool) -> bool {
    list.is_empty() || list.iter().any(holds)
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        if self.level.is_none() {
            return Err("level: Required value".to_owned());
        }
        if !(self.non_resource_urls.is_empty() || self.resources.is_empty() && self.namespaces.is_empty()) {
            return Err("nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs".to_owned());
        }
        for url in self.non_resource_urls.iter().filter(|url| *url != "*") {
            if !url.starts_with('/') {
                return Err(format!("nonResourceURLs: Invalid value: {url:?}: non-resource URL rules must begin with a '/' character"));
            }
            if url.find('*').is_some_and(|at| at + 1 < url.len()) {
                return Err(format!("nonResourceURLs: Invalid value: {url:?}: non-resource URL wildcards '*' must be the final character of the rule"));
            }
        }
        match self.resources.iter().find(|r| !r.resource_names.is_empty() && r.resources.is_empty()) {
            Some(_) => Err("resources.resourceNames: Invalid value: using resourceNames requires at least one resource".to_owned()),
            None => Ok(()),
        }
    }

    fn matches(&self, user: Option<&User>, info: &RequestInfo) -> bool {
        let who = empty_or(&self.users, |name| user.is_some_and(|u| u.name == *name)) && empty_or(&self.user_groups, |group| user.is_some_and(|u| u.in_group(group)));
        if !who || !empty_or(&self.verbs, |verb| verb == info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            let here = empty_or(&self.namespaces, |namespace| *namespace == info.namespace);
            return info.is_resource && here && (self.resources.is_empty() || self.resources.iter().any(|r| r.covers(info)));
        }
        if self.non_resource_urls.is_empty() {
            return true;
        }
        let covers = |url: &String| url == "*" || *url == info.path || url.strip_suffix('*').is_some_and(|start| info.path.starts_with(start));
        !info.is_resource && self.non_resource_urls.iter().any(covers)
    }
}

impl Resources {
    fn covers(&self, info: &RequestInfo) -> bool {
        let covers = |resource: &String| match (resource.split_once('/'), info.subresource.as_str()) {
            _ if resource == "*" => true,
            (None, "") => *resource == info.resource,
            (None, _) => false,
            (Some((of, "*")), _) => of == info.resource,
            (Some((of, sub)), asked) => sub == asked && (of == "*" || of == info.resource),
        };
        let named = empty_or(&self.resource_names, |name| *name == info.name);
        (self.group == "*" || self.group == info.group) && (self.resources.is_empty() || (named && self.resources.iter().any(covers)))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::http::query::Query;

    fn policy(mut policy: Value) -> Policy {
        policy["apiVersion"] = "audit.k8s.io/v1".into();
        Policy::read(policy).expect("a policy")
    }

    fn check(rule: Value, method: &str, path: &str, expected: bool) {
        let mut rule = rule;
        rule["level"] = "Metadata".into();
        let policy = policy(json!({"rules": [rule]}));
        let info = RequestInfo::new(&method.parse::<Method>().expect("a method"), path, &Query::parse(""));
        let found = policy.judge(Some(&User::new("jane", ["dev"])), &info).level;
        assert_eq!(found == Level::Metadata, expected, "{policy:?} {method} {path}");
    }

    #[test]
    fn rules() {
        let pods = "/api/v1/namespaces/n/pods/p";
        check(json!({}), "GET", pods, true);
        check(json!({"users": ["jane"]}), "GET", pods, true);
        check(json!({"users": ["joe"]}), "GET", pods, false);
        check(json!({"userGroups": ["ops", "dev"]}), "GET", pods, true);
        check(json!({"verbs": ["list"]}), "GET", pods, false);
        check(json!({"namespaces": ["n"]}), "GET", pods, true);
        check(json!({"namespaces": [""]}), "GET", pods, false);
        check(json!({"namespaces": [""]}), "GET", "/api/v1/nodes", true);
        check(json!({"resources": [{"group": ""}]}), "GET", pods, true);
        check(json!({"resources": [{"group": "apps"}]}), "GET", pods, false);
        check(json!({"resources": [{"group": "*"}]}), "GET", pods, true);
        check(json!({"resources": [{"group": "", "resources": ["pods"]}]}), "GET", pods, true);
        check(json!({"resources": [{"group": "", "resources": ["pods"]}]}), "GET", "/api/v1/namespaces/n/pods/p/log", false);
        for covering in ["*", "pods/*", "*/log", "pods/log"] {
            check(json!({"resources": [{"group": "", "resources": [covering]}]}), "GET", "/api/v1/namespaces/n/pods/p/log", true);
        }
        check(json!({"resources": [{"group": "", "resources": ["pods"], "resourceNames": ["q"]}]}), "GET", pods, false);
        check(json!({"nonResourceURLs": ["/healthz*"]}), "GET", "/healthz/etcd", true);
        check(json!({"nonResourceURLs": ["*"]}), "GET", pods, false);
        check(json!({"resources": [{"group": ""}]}), "GET", "/healthz", false);
    }

    #[test]
    fn what_can_not_be_meant() {
        let check = |rules: Value, expected: &str| {
            let read = Policy::read(json!({"apiVersion": "audit.k8s.io/v1", "rules": rules}));
            assert!(read.as_ref().is_err_and(|why| why.starts_with(expected)), "{read:?}");
        };
        check(json!([]), "loaded illegal policy with 0 rules");
        check(json!([{"level": "None"}, {"users": ["jane"]}]), "rules[1].level: Required value");
        check(json!([{"level": "None", "nonResourceURLs": ["/x"], "namespaces": ["n"]}]), "rules[0].nonResourceURLs: Invalid value: rules cannot");
        check(json!([{"level": "None", "nonResourceURLs": ["x"]}]), "rules[0].nonResourceURLs: Invalid value: \"x\"");
        check(json!([{"level": "None", "nonResourceURLs": ["/x*y"]}]), "rules[0].nonResourceURLs: Invalid value: \"/x*y\"");
        check(json!([{"level": "None", "resources": [{"resourceNames": ["a"]}]}]), "rules[0].resources.resourceNames");
        assert!(Policy::read(json!({"apiVersion": "audit.k8s.io/v1beta1", "rules": [{"level": "None"}]})).is_err());
    }

    #[test]
    fn stages_add_up_and_levels_are_ordered() {
        let policy = json!({"omitStages": ["RequestReceived"], "omitManagedFields": true, "rules": [{"level": "Request", "omitStages": ["Panic"], "omitManagedFields": false}]});
        let policy = self::policy(policy);
        let info = RequestInfo::default();
        let expected = Judgement { level: Level::Request, omit_stages: vec![Stage::RequestReceived, Stage::Panic], omit_managed_fields: false };
        assert_eq!(policy.judge(None, &info), expected);
        assert!(Level::Metadata < Level::Request && Level::Request < Level::RequestResponse);
        assert_eq!(Policy::default().judge(None, &info).level, Level::None, "what no rule matches is not told of");
    }
}
