//! What can be said about who may do what, and what is told of it: upstream's flags of the same names.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

/// Authentication, authorization, audit and encryption. The default is what a server without flags does.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Who may do what")]
pub struct Options {
    /// A file of static tokens: lines of TOKEN,USER,UID,"GROUP1,GROUP2".
    #[arg(long, value_name = "PATH")]
    pub token_auth_file: Option<PathBuf>,
    /// Whether requests without credentials are served, as system:anonymous [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub anonymous_auth: Option<bool>,
    /// The OpenID issuer whose tokens are believed; an https:// URL.
    #[arg(long, value_name = "URL")]
    pub oidc_issuer_url: Option<String>,
    /// The audience that OpenID tokens must be for.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub oidc_client_id: String,
    /// The claim that is the user's name [default: sub].
    #[arg(long, value_name = "CLAIM")]
    pub oidc_username_claim: Option<String>,
    /// What goes before the user's name [default: ISSUER# but for the claim email; - for nothing].
    #[arg(long, value_name = "PREFIX")]
    pub oidc_username_prefix: Option<String>,
    /// The claim that holds the user's groups.
    #[arg(long, value_name = "CLAIM", default_value = "", hide_default_value = true)]
    pub oidc_groups_claim: String,
    /// What goes before each group.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub oidc_groups_prefix: String,
    /// A claim that tokens must have, as NAME=VALUE; may be said several times.
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,
    /// The authorities that are believed about the issuer's certificate [default: the system's].
    #[arg(long, value_name = "PATH")]
    pub oidc_ca_file: Option<PathBuf>,
    /// The algorithms that tokens may be signed with [default: RS256].
    #[arg(long, value_name = "ALG", value_delimiter = ',')]
    pub oidc_signing_algs: Vec<String>,
    /// An AuthenticationConfiguration: JWT issuers and anonymous requests, in place of the --oidc flags and --anonymous-auth.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["oidc_issuer_url", "anonymous_auth"])]
    pub authentication_config: Option<PathBuf>,
    /// A kubeconfig that leads to a webhook which judges bearer tokens.
    #[arg(long, value_name = "PATH")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// How long the webhook's answers hold [default: 2m].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Option<Duration>,
    /// The version of TokenReview that the webhook is sent: v1 or v1beta1 [default: v1beta1].
    #[arg(long, value_name = "VERSION", value_parser = ["v1", "v1beta1"])]
    pub authentication_token_webhook_version: Option<String>,
    /// The audiences that this server's tokens are for, the first of them by default [default: the issuer].
    #[arg(long, value_name = "AUDIENCE", value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// Authorities whose certificates show who a client is, beside the cluster's own.
    #[arg(long, value_name = "PATH")]
    pub client_ca_file: Option<PathBuf>,
    /// The authorities of front proxies, which say by headers who asks.
    #[arg(long, value_name = "PATH")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// The common names that front proxies may have [default: any].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// The headers that say the user's name [default: X-Remote-User].
    #[arg(long, value_name = "HEADER", value_delimiter = ',')]
    pub requestheader_username_headers: Vec<String>,
    /// The headers that say the user's uid [default: X-Remote-Uid].
    #[arg(long, value_name = "HEADER", value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,
    /// The headers that say the user's groups [default: X-Remote-Group].
    #[arg(long, value_name = "HEADER", value_delimiter = ',')]
    pub requestheader_group_headers: Vec<String>,
    /// What the headers begin with that say what else is known [default: X-Remote-Extra-].
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub requestheader_extra_headers_prefix: Vec<String>,

    /// Who is asked whether a request may be, in turn: Node, RBAC, Webhook, AlwaysAllow, AlwaysDeny [default: Node,RBAC].
    #[arg(long, value_name = "MODE", value_delimiter = ',', value_parser = ["Node", "RBAC", "Webhook", "AlwaysAllow", "AlwaysDeny"])]
    pub authorization_mode: Vec<String>,
    /// A kubeconfig that leads to a webhook which authorizes, for the mode Webhook.
    #[arg(long, value_name = "PATH")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// How long the webhook's yes holds [default: 5m].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long the webhook's no holds [default: 30s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
    /// The version of SubjectAccessReview that the webhook is sent: v1 or v1beta1 [default: v1beta1].
    #[arg(long, value_name = "VERSION", value_parser = ["v1", "v1beta1"])]
    pub authorization_webhook_version: Option<String>,
    /// An AuthorizationConfiguration, in place of the other authorization flags.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["authorization_mode", "authorization_webhook_config_file"])]
    pub authorization_config: Option<PathBuf>,

    /// Admission plugins that act; all that there are do.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins that don't act.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,

    /// What is written to the audit log: a Policy of audit.k8s.io/v1. Without one there is no audit.
    #[arg(long, value_name = "PATH")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where the audit log goes, a line of JSON an event; - is standard output.
    #[arg(long, value_name = "PATH")]
    pub audit_log_path: Option<PathBuf>,
    /// How many days older audit logs are kept; 0 for ever.
    #[arg(long, value_name = "DAYS", default_value_t = 0, hide_default_value = true)]
    pub audit_log_maxage: u32,
    /// How many older audit logs are kept; 0 for all.
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    pub audit_log_maxbackup: usize,
    /// How large the audit log grows before a new one is begun, in megabytes [default: 100].
    #[arg(long, value_name = "MEGABYTES", default_value_t = 0, hide_default_value = true)]
    pub audit_log_maxsize: u64,
    /// A kubeconfig that leads to a webhook which takes audit events, in batches.
    #[arg(long, value_name = "PATH")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// How long the audit webhook's batches wait to be full [default: 30s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub audit_webhook_batch_max_wait: Option<Duration>,

    /// How resources are encrypted in the store: an EncryptionConfiguration.
    #[arg(long, value_name = "PATH")]
    pub encryption_provider_config: Option<PathBuf>,
}

/// A file that the options name can't be used.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: {why}")]
pub struct Error {
    flag: &'static str,
    why: String,
}

impl Error {
    pub(crate) fn new(flag: &'static str, why: impl ToString) -> Self {
        Self { flag, why: why.to_string() }
    }
}

/// `30s`, `2m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let read = text.parse::<jiff::SignedDuration>().map_err(|_| "it must be like 30s or 2m".to_owned())?;
    Duration::try_from(read).map_err(|_| "it must not be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn read(args: &[&str]) -> Options {
        let matches = Options::augment_args(Command::new("test").no_binary_name(true)).try_get_matches_from(args).expect("arguments");
        Options::from_arg_matches(&matches).expect("options")
    }

    #[test]
    fn flags() {
        assert_eq!(format!("{:?}", read(&[])), format!("{:?}", Options::default()), "no flags say nothing");
        assert_eq!(read(&["--anonymous-auth=false"]).anonymous_auth, Some(false));
        assert_eq!(read(&["--anonymous-auth"]).anonymous_auth, Some(true));
        assert_eq!(read(&["--authorization-mode=Node,Webhook"]).authorization_mode, ["Node", "Webhook"]);
        assert_eq!(read(&["--authentication-token-webhook-cache-ttl=1m30s"]).authentication_token_webhook_cache_ttl, Some(Duration::from_secs(90)));
    }
}
