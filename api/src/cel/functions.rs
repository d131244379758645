//! The functions there are: what upstream's environment of 1.36 declares, as signatures.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::types::Type;

/// How many parameters a signature has at most: `A`, `B`.
pub(super) const PARAMS: usize = 2;

/// One way to call a function.
#[derive(Debug)]
pub(super) struct Overload {
    /// Whether it is called on a receiver, which is the first argument.
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
}

/// What `C` stands for: one overload each.
const COMPARABLE: [&str; 8] = ["int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes"];

/// A line a function: its name, then its overloads. A dot before the parenthesis stands for a receiver.
const FUNCTIONS: &str = "
_==_ (A,A)bool
_!=_ (A,A)bool
_<_ (bool,bool)bool (int,int)bool (int,uint)bool (int,double)bool (uint,uint)bool (uint,int)bool (uint,double)bool (double,double)bool (double,int)bool (double,uint)bool (string,string)bool (bytes,bytes)bool (timestamp,timestamp)bool (duration,duration)bool
_+_ (int,int)int (uint,uint)uint (double,double)double (string,string)string (bytes,bytes)bytes (list<A>,list<A>)list<A> (timestamp,duration)timestamp (duration,timestamp)timestamp (duration,duration)duration
_-_ (int,int)int (uint,uint)uint (double,double)double (timestamp,timestamp)duration (timestamp,duration)timestamp (duration,duration)duration
_*_ (int,int)int (uint,uint)uint (double,double)double
_/_ (int,int)int (uint,uint)uint (double,double)double
_%_ (int,int)int (uint,uint)uint
-_ (int)int (double)double
!_ (bool)bool
@in (A,list<A>)bool (A,map<A,B>)bool
_[_] (list<A>,int)A (map<A,B>,A)B (optional<list<A>>,int)optional<A> (optional<map<A,B>>,A)optional<B>
_[?_] (list<A>,int)optional<A> (map<A,B>,A)optional<B> (optional<list<A>>,int)optional<A> (optional<map<A,B>>,A)optional<B>
size (string)int (bytes)int (list<A>)int (map<A,B>)int .(string)int .(bytes)int .(list<A>)int .(map<A,B>)int
contains .(string,string)bool
startsWith .(string,string)bool
endsWith .(string,string)bool
matches (string,string)bool .(string,string)bool
int (int)int (uint)int (double)int (string)int (timestamp)int (duration)int
uint (uint)uint (int)uint (double)uint (string)uint
double (double)double (int)double (uint)double (string)double
bool (bool)bool (string)bool
string (string)string (bool)string (int)string (uint)string (double)string (bytes)string (timestamp)string (duration)string (Quantity)string (IP)string (CIDR)string (Semver)string
bytes (bytes)bytes (string)bytes
timestamp (timestamp)timestamp (string)timestamp (int)timestamp
duration (duration)duration (string)duration (int)duration
type (A)type<A>
dyn (A)dyn
getFullYear .(timestamp)int .(timestamp,string)int
getMonth .(timestamp)int .(timestamp,string)int
getDayOfYear .(timestamp)int .(timestamp,string)int
getDayOfMonth .(timestamp)int .(timestamp,string)int
getDate .(timestamp)int .(timestamp,string)int
getDayOfWeek .(timestamp)int .(timestamp,string)int
getHours .(timestamp)int .(timestamp,string)int .(duration)int
getMinutes .(timestamp)int .(timestamp,string)int .(duration)int
getSeconds .(timestamp)int .(timestamp,string)int .(duration)int
getMilliseconds .(timestamp)int .(timestamp,string)int .(duration)int
charAt .(string,int)string
indexOf .(string,string)int .(string,string,int)int .(list<A>,A)int
lastIndexOf .(string,string)int .(string,string,int)int .(list<A>,A)int
lowerAscii .(string)string
upperAscii .(string)string
replace .(string,string,string)string .(string,string,string,int)string
split .(string,string)list<string> .(string,string,int)list<string>
substring .(string,int)string .(string,int,int)string
trim .(string)string
join .(list<string>)string .(list<string>,string)string
format .(string,list<dyn>)string
strings.quote (string)string
find .(string,string)string
findAll .(string,string)list<string> .(string,string,int)list<string>
isSorted .(list<C>)bool
sum .(list<int>)int .(list<uint>)uint .(list<double>)double .(list<duration>)duration
min .(list<C>)C
max .(list<C>)C
slice .(list<A>,int,int)list<A>
flatten .(list<list<A>>)list<A> .(list<dyn>,int)list<dyn>
distinct .(list<A>)list<A>
reverse .(list<A>)list<A>
sort .(list<C>)list<C>
first .(list<A>)optional<A>
last .(list<A>)optional<A>
lists.range (int)list<int>
sets.contains (list<A>,list<A>)bool
sets.equivalent (list<A>,list<A>)bool
sets.intersects (list<A>,list<A>)bool
@sortByAssociatedKeys .(list<A>,list<C>)list<A>
cel.@mapInsert (map<A,B>,A,B)map<A,B> (map<A,B>,map<A,B>)map<A,B>
optional.of (A)optional<A>
optional.ofNonZeroValue (A)optional<A>
optional.none ()optional<A>
optional.unwrap (list<optional<A>>)list<A>
unwrapOpt .(list<optional<A>>)list<A>
hasValue .(optional<A>)bool
value .(optional<A>)A
or .(optional<A>,optional<A>)optional<A>
orValue .(optional<A>,A)A
url (string)URL
isURL (string)bool
getScheme .(URL)string
getHost .(URL)string
getHostname .(URL)string
getPort .(URL)string
getEscapedPath .(URL)string
getQuery .(URL)map<string,list<string>>
quantity (string)Quantity
isQuantity (string)bool
sign .(Quantity)int
isInteger .(Quantity)bool
asInteger .(Quantity)int
asApproximateFloat .(Quantity)double
add .(Quantity,Quantity)Quantity .(Quantity,int)Quantity
sub .(Quantity,Quantity)Quantity .(Quantity,int)Quantity
isGreaterThan .(Quantity,Quantity)bool .(Semver,Semver)bool
isLessThan .(Quantity,Quantity)bool .(Semver,Semver)bool
compareTo .(Quantity,Quantity)int .(Semver,Semver)int
semver (string)Semver (string,bool)Semver
isSemver (string)bool (string,bool)bool
major .(Semver)int
minor .(Semver)int
patch .(Semver)int
ip (string)IP .(CIDR)IP
isIP (string)bool
ip.isCanonical (string)bool
family .(IP)int
isUnspecified .(IP)bool
isLoopback .(IP)bool
isLinkLocalMulticast .(IP)bool
isLinkLocalUnicast .(IP)bool
isGlobalUnicast .(IP)bool
cidr (string)CIDR
isCIDR (string)bool
containsIP .(CIDR,string)bool .(CIDR,IP)bool
containsCIDR .(CIDR,string)bool .(CIDR,CIDR)bool
masked .(CIDR)CIDR
prefixLength .(CIDR)int
format.named (string)optional<Format>
format.dns1123Label ()Format
format.dns1123Subdomain ()Format
format.dns1035Label ()Format
format.qualifiedName ()Format
format.dns1123LabelPrefix ()Format
format.dns1123SubdomainPrefix ()Format
format.dns1035LabelPrefix ()Format
format.labelValue ()Format
format.uri ()Format
format.uuid ()Format
format.byte ()Format
format.date ()Format
format.datetime ()Format
validate .(Format,string)optional<list<string>>
path .(Authorizer,string)PathCheck
group .(Authorizer,string)GroupCheck
serviceAccount .(Authorizer,string,string)Authorizer
resource .(GroupCheck,string)ResourceCheck
subresource .(ResourceCheck,string)ResourceCheck
namespace .(ResourceCheck,string)ResourceCheck
name .(ResourceCheck,string)ResourceCheck
fieldSelector .(ResourceCheck,string)ResourceCheck
labelSelector .(ResourceCheck,string)ResourceCheck
check .(PathCheck,string)Decision .(ResourceCheck,string)Decision
allowed .(Decision)bool
reason .(Decision)string
errored .(Decision)bool
error .(Decision)string
jsonpatch.escapeKey (string)string
";

/// Kubernetes' own types by the names used above, with those that expressions see.
const OPAQUE: [(&str, &str); 11] = [
    ("Quantity", "kubernetes.Quantity"),
    ("Semver", "kubernetes.Semver"),
    ("URL", "kubernetes.URL"),
    ("IP", "net.IP"),
    ("CIDR", "net.CIDR"),
    ("Format", "kubernetes.NamedFormat"),
    ("Authorizer", "kubernetes.authorization.Authorizer"),
    ("PathCheck", "kubernetes.authorization.PathCheck"),
    ("GroupCheck", "kubernetes.authorization.GroupCheck"),
    ("ResourceCheck", "kubernetes.authorization.ResourceCheck"),
    ("Decision", "kubernetes.authorization.Decision"),
];

/// The type of an authorizer.
pub const AUTHORIZER: Type = Type::Opaque("kubernetes.authorization.Authorizer");
/// The type of a check of a resource.
pub const RESOURCE_CHECK: Type = Type::Opaque("kubernetes.authorization.ResourceCheck");

/// The overloads of a function.
pub(super) fn overloads(name: &str) -> Option<&'static [Overload]> {
    static ALL: OnceLock<HashMap<&'static str, Vec<Overload>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let read = |line: &'static str| {
            let (name, overloads) = line.split_once(' ')?;
            let each = |text: &str| match text.split_once("<C>") {
                Some(_) => COMPARABLE.iter().filter_map(|of| overload(&text.replace("<C>", &format!("<{of}>")).replace(")C", &format!("){of}")))).collect(),
                None => Vec::from_iter(overload(text)),
            };
            Some((name, overloads.split(' ').flat_map(each).collect::<Vec<_>>()))
        };
        FUNCTIONS.lines().filter_map(read).collect()
    });
    // The four comparisons have the same signatures.
    let name = if matches!(name, "_<=_" | "_>_" | "_>=_") { "_<_" } else { name };
    all.get(name).map(Vec::as_slice)
}

fn overload(text: &str) -> Option<Overload> {
    let member = text.starts_with('.');
    let (args, result) = text.trim_start_matches(['.', '(']).split_once(')')?;
    let mut list = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (i, c) in args.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                list.push(type_of(&args[start..i]));
                start = i + 1;
            }
            _ => {}
        }
    }
    if !args.is_empty() {
        list.push(type_of(&args[start..]));
    }
    Some(Overload { member, args: list, result: type_of(result) })
}

fn type_of(text: &str) -> Type {
    if let Some((outer, inner)) = text.strip_suffix('>').and_then(|t| t.split_once('<')) {
        return match outer {
            "list" => Type::list(type_of(inner)),
            "type" => Type::Type(Arc::new(type_of(inner))),
            "optional" => Type::Optional(Arc::new(type_of(inner))),
            _ => inner.split_once(',').map_or(Type::Dyn, |(key, value)| Type::map(type_of(key), type_of(value))),
        };
    }
    match text {
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        other => {
            let opaque = || OPAQUE.iter().find(|(short, _)| *short == other).map(|(_, name)| Type::Opaque(name));
            Type::plain(other).or_else(opaque).unwrap_or(Type::Dyn)
        }
    }
}
