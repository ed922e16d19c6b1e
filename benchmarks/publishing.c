/* Publishes the lines of FILE with librabbitmq: persistent, with 1,000 unconfirmed messages.
 * Prints the messages a second.
 *
 * publishing PORT EXCHANGE KEY FILE
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { IN_FLIGHT = 1000, CHANNEL = 1, MOST = 1000000 };

static amqp_connection_state_t link;
static char confirmed[MOST + 1]; /* by delivery tag */
static int oldest = 1;           /* the first unconfirmed tag */

static void need(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s failed\n", what);
    exit(1);
}

static int answered(void) { return amqp_get_rpc_reply(link).reply_type == AMQP_RESPONSE_NORMAL; }

/* Read a confirm; it can be for all messages up to its tag. */
static void take_confirm(int sent) {
    amqp_frame_t frame;
    need(amqp_simple_wait_frame(link, &frame) == AMQP_STATUS_OK, "waiting for a confirm");
    need(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD,
         "confirming");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    need(ack->delivery_tag <= (uint64_t)sent, "counting");
    for (int tag = ack->multiple ? oldest : (int)ack->delivery_tag; tag <= (int)ack->delivery_tag;
         tag++)
        confirmed[tag] = 1;
    while (oldest <= sent && confirmed[oldest]) oldest++;
    amqp_maybe_release_buffers(link);
}

int main(int argc, char **argv) {
    need(argc == 5, "reading the arguments");
    static char *bodies[MOST];
    int count = 0, sent = 0;
    FILE *file = fopen(argv[4], "r");
    need(file != NULL, "opening the file");
    size_t room = 0;
    for (char *line = NULL; count < MOST && getline(&line, &room, file) > 0; line = NULL, room = 0) {
        line[strcspn(line, "\n")] = 0;
        bodies[count++] = line;
    }

    link = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(link);
    need(amqp_socket_open(socket, "127.0.0.1", atoi(argv[1])) == AMQP_STATUS_OK, "connecting");
    need(amqp_login(link, "/", 0, AMQP_DEFAULT_FRAME_SIZE, 0, AMQP_SASL_METHOD_PLAIN, "guest",
                    "guest").reply_type == AMQP_RESPONSE_NORMAL, "logging in");
    amqp_channel_open(link, CHANNEL);
    need(answered(), "opening a channel");
    amqp_confirm_select(link, CHANNEL);
    need(answered(), "asking for confirms");

    amqp_basic_properties_t properties = {._flags = AMQP_BASIC_DELIVERY_MODE_FLAG,
                                          .delivery_mode = AMQP_DELIVERY_PERSISTENT};
    amqp_bytes_t exchange = amqp_cstring_bytes(argv[2]), key = amqp_cstring_bytes(argv[3]);
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (sent < count) {
        amqp_bytes_t body = amqp_cstring_bytes(bodies[sent]);
        need(amqp_basic_publish(link, CHANNEL, exchange, key, 0, 0, &properties, body) ==
                 AMQP_STATUS_OK, "publishing");
        sent++;
        while (sent - oldest + 1 >= IN_FLIGHT) take_confirm(sent);
    }
    while (oldest <= sent) take_confirm(sent);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double took = (ended.tv_sec - began.tv_sec) + (ended.tv_nsec - began.tv_nsec) / 1e9;
    printf("%f\n", count / took);
    return 0;
}
