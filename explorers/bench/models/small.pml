/* The small protocol, one statement for each shared operation. Compile with -DSENDERS=n and one of -DPOLLS,
 * -DIS_INTERRUPTED, -DGOES_OFFLINE (with -DDRAINS or without). A state in which nobody can move and somebody has not
 * come to its end is an invalid end state: the verdict. */
#ifdef IS_INTERRUPTED
#define CALLS (SENDERS + 1)
#define UNLESS_INTERRUPTED provided (!in_handler)
#else
#define CALLS SENDERS
#define UNLESS_INTERRUPTED
#endif

byte head, runs;
bit irr, online = 1, in_handler;
byte next_of[CALLS];
bit unlocked[CALLS];

inline push(call) {
    old = head;
    do
    :: next_of[call] = old;
       atomic {
           if
           :: head == old -> head = call + 1; break
           :: else -> old = head
           fi
       }
    od;
    if
    :: d_step { old == 0 -> irr = 1 }
    :: else
    fi
}

inline handle() {
    d_step { found = head; head = 0 };
    do
    :: found != 0 ->
       following = next_of[found - 1];
       d_step { unlocked[found - 1] = 1; runs++; found = following; following = 0 }
    :: else -> break
    od
}

proctype sender(byte call) {
    byte old;
    push(call);
    unlocked[call] == 1
}

#ifdef GOES_OFFLINE
proctype early() {
    byte old;
    if
    :: online -> push(0)
    :: else
    fi
}

proctype late() {
    byte old;
    online;
    push(1);
    unlocked[1] == 1
}
#endif

proctype target() UNLESS_INTERRUPTED {
#ifdef POLLS
    byte found, following;
    do
    :: runs < CALLS -> irr; irr = 0; handle()
    :: else -> break
    od
#endif
#ifdef IS_INTERRUPTED
    byte old;
    push(SENDERS)
#endif
#ifdef GOES_OFFLINE
    byte found, following;
    online = 0;
    irr = 0;
    online = 1;
#ifdef DRAINS
    handle();
#endif
    do
    :: unlocked[1] == 0 -> irr; irr = 0; handle()
    :: unlocked[1] == 1 -> break
    od
#endif
}

#ifdef IS_INTERRUPTED
/* The same CPU: while it runs, the target does not. */
proctype handler() {
    byte found, following;
    do
    :: d_step { irr -> irr = 0; in_handler = 1 };
       handle();
       in_handler = 0
    :: runs == CALLS && !irr -> break
    od
}
#endif

init {
    atomic {
        run target();
#ifdef IS_INTERRUPTED
        run handler();
#endif
#ifdef GOES_OFFLINE
        run early();
        run late()
#else
        byte call = 0;
        do
        :: call < SENDERS -> run sender(call); call++
        :: else -> break
        od
#endif
    }
}
