import java.util.Collection;
import java.util.Map;
import java.util.TreeSet;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.RetryForever;
import org.apache.curator.x.discovery.ServiceCache;
import org.apache.curator.x.discovery.ServiceDiscovery;
import org.apache.curator.x.discovery.ServiceDiscoveryBuilder;
import org.apache.curator.x.discovery.ServiceInstance;
import org.apache.curator.x.discovery.details.ServiceCacheListener;

/**
 * A service as the JVM world writes them: Curator's ServiceDiscovery and ServiceCache, as their documentation has them.
 *
 * <p>Usage: HOSTS BASE SERVICE [ID ADDRESS PORT]. Registers itself if it has an ID, follows SERVICE, and writes a line for
 * each list it sees: "cache" is what the ServiceCache holds, "query" what a fresh query answers. Runs until it is killed.
 */
public class CuratorNeighbour {
    public static void main(String[] arguments) throws Exception {
        String service = arguments[2];
        CuratorFramework client =
                CuratorFrameworkFactory.newClient(arguments[0], 4000, 4000, new RetryForever(100));
        client.start();
        client.blockUntilConnected();

        ServiceDiscoveryBuilder<Map> builder =
                ServiceDiscoveryBuilder.builder(Map.class).client(client).basePath(arguments[1]);
        if (arguments.length > 3) {
            builder.thisInstance(ServiceInstance.<Map>builder()
                    .name(service)
                    .id(arguments[3])
                    .address(arguments[4])
                    .port(Integer.parseInt(arguments[5]))
                    .build());
        }
        ServiceDiscovery<Map> discovery = builder.build();
        discovery.start();

        ServiceCache<Map> cache = discovery.serviceCacheBuilder().name(service).build();
        cache.addListener(new ServiceCacheListener() {
            @Override
            public void cacheChanged() {
                say("cache", cache.getInstances());
                try {
                    say("query", discovery.queryForInstances(service));
                } catch (Exception error) {
                    System.out.println("query failed: " + error);
                }
            }

            @Override
            public void stateChanged(CuratorFramework framework, ConnectionState state) {
                System.out.println("state " + state);
            }
        });
        cache.start();
        say("cache", cache.getInstances());
        say("query", discovery.queryForInstances(service));
        Thread.currentThread().join();
    }

    private static synchronized void say(String source, Collection<ServiceInstance<Map>> instances) {
        TreeSet<String> words = new TreeSet<>();
        for (ServiceInstance<Map> each : instances) {
            words.add(each.getId() + "@" + each.getAddress() + ":" + each.getPort() + "=" + each.getPayload()
                    + (each.getSslPort() == null ? "" : "/ssl:" + each.getSslPort())
                    + (each.isEnabled() ? "" : "/disabled"));
        }
        System.out.println(source + " " + String.join(" ", words));
    }
}
