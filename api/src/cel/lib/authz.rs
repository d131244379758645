//! `authorizer.group("").resource("pods").check("get").allowed()`

use std::sync::Arc;

use super::super::eval::Evaluated;
use super::super::value::Val;
use super::bool;
use super::opaque::{Check, Opaque, Query};

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    let Val::Opaque(opaque) = args.first()? else { return None };
    let texts: Option<Vec<&str>> = args[1..].iter().map(|a| if let Val::Str(s) = a { Some(&**s) } else { None }).collect();
    let texts = texts?;
    let (authorizer, check, query) = match &**opaque {
        Opaque::Authorizer(authorizer, check, query) => (authorizer, *check, query),
        Opaque::Decision(decision) => {
            return match name {
                "allowed" => bool(decision.allowed),
                "errored" => bool(!decision.error.is_empty()),
                "reason" => Some(Ok(Val::text(&decision.reason))),
                "error" => Some(Ok(Val::text(&decision.error))),
                _ => None,
            };
        }
        _ => return None,
    };
    let made = |check: Check, query: Query| Some(Ok(Val::Opaque(Arc::new(Opaque::Authorizer(Arc::clone(authorizer), check, query)))));
    let query = query.clone();
    match (check, name, texts.as_slice()) {
        (Check::Nothing, "serviceAccount", [namespace, name]) => {
            made(check, Query { account: Some(((*namespace).into(), (*name).into())), ..query })
        }
        (Check::Nothing, "path", [path]) => made(Check::Path, Query { path: Some((*path).into()), ..query }),
        (Check::Nothing, "group", [group]) => made(Check::Group, Query { group: (*group).into(), ..query }),
        (Check::Group, "resource", [resource]) => made(Check::Resource, Query { resource: (*resource).into(), ..query }),
        (Check::Resource, "subresource", [subresource]) => made(check, Query { subresource: (*subresource).into(), ..query }),
        (Check::Resource, "namespace", [namespace]) => made(check, Query { namespace: (*namespace).into(), ..query }),
        (Check::Resource, "name", [name]) => made(check, Query { name: (*name).into(), ..query }),
        // No authorizer here decides by selectors: a check with one is a check of everything.
        (Check::Resource, "fieldSelector" | "labelSelector", [_]) => made(check, query),
        (Check::Resource | Check::Path, "check", [verb]) => {
            let decision = authorizer.check(&Query { verb: (*verb).into(), ..query });
            Some(Ok(Val::Opaque(Arc::new(Opaque::Decision(decision)))))
        }
        _ => None,
    }
}
