"""Nodes as other systems write them, and what we have to make of each."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Planted:
    """A node as its own system writes it, and what we have to make of it."""

    layout: str
    node: str
    data: bytes
    address: str
    port: int
    id: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    health: str = ""
    registered_at: float | None = None
    endpoints: tuple[tuple[str, int], ...] = ()
    is_recognised: bool = True
    """Whether ``auto`` knows it: not what could be anybody's setting."""


DUBBO_NODE = (
    "dubbo%3A%2F%2F192.168.56.1%3A20880%2Fcom.acme.MenuService%3Fanyhost%3Dtrue%26application%3Dshop%26dynamic%3Dtrue"
    "%26group%3Dred%26interface%3Dcom.acme.MenuService%26methods%3DsayHi%2CsayBye%26pid%3D250480%26side%3Dprovider"
    "%26timestamp%3D1572509354829%26version%3D1.0"
)
SOFA_NODE = (
    "bolt%3A%2F%2F192.168.43.240%3A12200%3Fversion%3D1.0%26accepts%3D100000%26appName%3Dusers%26weight%3D100"
    "%26dynamic%3Dtrue%26startTime%3D1591755744817%26id%3DuserService%26uniqueId%3D%26rpcVer%3D50700"
)
NERVE_JSON = b'{"host":"10.0.0.7","port":9090,"name":"web-1","weight":20,"labels":{"zone":"eu"}}'
NERVE_BASE64 = (
    "base64_108_eyJob3N0IjoiMTAuMC4wLjciLCJwb3J0Ijo5MDkwLCJuYW1lIjoid2ViLTEiLCJ3ZWlnaHQiOjIwLCJsYWJlbHMiOnsiem9uZSI6ImV1"
    "In19"
)
PLANTED = [
    Planted(
        "serverset",
        "member_0000000001",
        b'{"serviceEndpoint":{"host":"web7","port":4794},"additionalEndpoints":{"admin":{"host":"web7","port":9990}},'
        b'"status":"ALIVE","shard":1}',
        "web7",
        4794,
        metadata={"endpoint.admin": "web7:9990", "shard": "1"},
        endpoints=(("web7", 9990),),
    ),
    Planted(
        "serverset",
        "member_0000000002",
        b'{"serviceEndpoint":{"host":"web7","port":4794},"additionalEndpoints":{},"status":"DEAD"}',
        "web7",
        4794,
        health="maintenance",
    ),
    Planted(
        "dubbo",
        DUBBO_NODE,
        b"192.168.56.1",
        "192.168.56.1",
        20880,
        id="red@192.168.56.1:20880:1.0",
        metadata={
            "anyhost": "true",
            "application": "shop",
            "dynamic": "true",
            "group": "red",
            "interface": "com.acme.MenuService",
            "methods": "sayHi,sayBye",
            "pid": "250480",
            "protocol": "dubbo",
            "side": "provider",
            "timestamp": "1572509354829",
            "version": "1.0",
        },
        registered_at=1572509354.829,
    ),
    Planted(
        "dubbo",
        "tri%3A%2F%2F%5B%3A%3A1%5D%3A50051%2Fcom.acme.Menu%3Fdisabled%3Dtrue%26version%3D0.0.0",
        b"",
        "::1",
        50051,
        id="[::1]:50051",
        metadata={"disabled": "true", "protocol": "tri", "version": "0.0.0"},
        health="maintenance",
    ),
    Planted(
        "sofa",
        SOFA_NODE,
        b"",
        "192.168.43.240",
        12200,
        id="192.168.43.240:12200:1.0",
        metadata={
            "version": "1.0",
            "accepts": "100000",
            "appName": "users",
            "weight": "100",
            "dynamic": "true",
            "startTime": "1591755744817",
            "id": "userService",
            "rpcVer": "50700",
            "protocol": "bolt",
        },
        registered_at=1591755744.817,
    ),
    Planted("nerve", "web-1_0000000007", NERVE_JSON, "10.0.0.7", 9090, metadata={"weight": "20", "zone": "eu"}),
    Planted(
        "nerve",
        f"{NERVE_BASE64}_0000000007",
        b"",
        "10.0.0.7",
        9090,
        metadata={"weight": "20", "zone": "eu", "name": "web-1"},
    ),
    Planted(
        "kratos",
        "8f7a",
        b'{"id":"8f7a","name":"shop","version":"v1.2","metadata":{"zone":"eu"},'
        b'"endpoints":["http://10.0.0.7:8000?isSecure=false","grpc://10.0.0.7:9000?isSecure=false"]}',
        "10.0.0.7",
        8000,
        metadata={
            "zone": "eu",
            "version": "v1.2",
            "endpoints": "http://10.0.0.7:8000?isSecure=false grpc://10.0.0.7:9000?isSecure=false",
        },
        endpoints=(("10.0.0.7", 9000),),
    ),
    Planted(
        "rpcx", "tcp@10.0.0.7:8972", b"group=test&weight=7", "10.0.0.7", 8972, metadata={"group": "test", "weight": "7"}
    ),
    Planted(
        "rpcx",
        "quic@10.0.0.7:8972",
        b"state=inactive",
        "10.0.0.7",
        8972,
        metadata={"state": "inactive", "network": "quic"},
        health="maintenance",
    ),
    Planted("armeria", "192.168.1.10_8080", b"192.168.1.10:8080", "192.168.1.10", 8080),
    Planted(
        "armeria", "b", b"192.168.1.11:8080:100", "192.168.1.11", 8080, metadata={"weight": "100"}, is_recognised=False
    ),
    Planted("kingpin", "0f8fad5bd9cb469fa16570867728950e-web-7:9090", b"", "web-7", 9090),
    Planted("plain", "10.0.0.7:9090", b"", "10.0.0.7", 9090),
    Planted("plain", "worker", b"[::1]:9090\n", "::1", 9090, is_recognised=False),
]

SPRING = (
    b'{"name":"app","id":"4f1","address":"web7","port":8080,"sslPort":8443,"payload":{"@class":'
    b'"org.springframework.cloud.zookeeper.discovery.ZookeeperInstance","id":"app-1","name":"app","metadata":'
    b'{"instance_status":"UP"}},"registrationTimeUTC":1502961486539,"serviceType":"DYNAMIC","uriSpec":{"parts":['
    b'{"value":"scheme","variable":true},{"value":"://","variable":false},{"value":"address","variable":true},'
    b'{"value":":","variable":false},{"value":"port","variable":true}]}}'
)
CURATORS = [
    Planted(
        "curator",
        "4f1",
        SPRING,
        "web7",
        8080,
        metadata={"instance_status": "UP"},
        registered_at=1502961486.539,
        endpoints=(("web7", 8443),),
    ),
    Planted(
        "curator",
        "10.0.0.7:20880",
        b'{"name":"shop","id":"10.0.0.7:20880","address":"10.0.0.7","port":20880,"sslPort":null,"payload":{"@class":'
        b'"org.apache.dubbo.registry.zookeeper.ZookeeperInstance","id":"10.0.0.7:20880","name":"shop","metadata":'
        b'{"dubbo.endpoints":"[{\\"port\\":20880,\\"protocol\\":\\"dubbo\\"},{\\"port\\":50051,\\"protocol\\":\\"tri'
        b'\\"}]","dubbo.metadata.storage-type":"local"}},"registrationTimeUTC":1666000000000,"serviceType":"DYNAMIC",'
        b'"uriSpec":null}',
        "10.0.0.7",
        20880,
        metadata={
            "dubbo.endpoints": '[{"port":20880,"protocol":"dubbo"},{"port":50051,"protocol":"tri"}]',
            "dubbo.metadata.storage-type": "local",
        },
        registered_at=1666000000.0,
        endpoints=(("10.0.0.7", 50051),),
    ),
    Planted(
        "curator",
        "old-1",
        b'{"name":"old","id":"old-1","address":"10.0.0.9","port":80,"sslPort":null,"payload":null,'
        b'"registrationTimeUTC":1502961486539,"serviceType":"STATIC","uriSpec":{"parts":[{"value":'
        b'"https://10.0.0.9:444/old","variable":false}]},"enabled":false}',
        "10.0.0.9",
        80,
        metadata={"serviceType": "STATIC"},
        health="maintenance",
        registered_at=1502961486.539,
        endpoints=(("10.0.0.9", 444),),
    ),
    # Armeria, in its Curator form.
    Planted(
        "curator",
        "a3c0",
        b'{"name":"menu","id":"a3c0","address":"10.0.0.8","port":8081,"sslPort":null,"payload":null,'
        b'"registrationTimeUTC":1624000000000,"serviceType":"DYNAMIC","uriSpec":null,"enabled":true}',
        "10.0.0.8",
        8081,
        registered_at=1624000000.0,
    ),
]
"""Curator's, Spring Cloud's, Dubbo's per application and Armeria's second form; the others are in PLANTED."""
ALL_PLANTED = [*PLANTED, *CURATORS]
SWITCHABLE = [
    planted
    for planted in ALL_PLANTED
    if planted.layout in {"curator", "serverset", "rpcx"} and b"apache.dubbo" not in planted.data
]
"""Those whose data have a switch that takes them out of rotation."""
